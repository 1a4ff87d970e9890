"""What a format is, and a file for each one that reads it and finds its numbers for writing."""
