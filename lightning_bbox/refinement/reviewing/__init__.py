"""A person's look at moved boxes: the page to review them, and what was decided, applied."""
