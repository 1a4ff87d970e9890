"""Tables: one file of many pictures, a box a line, with a delimiter between the cells."""
