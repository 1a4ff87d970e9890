"""Moving boxes: in arrays, and in annotation files."""
