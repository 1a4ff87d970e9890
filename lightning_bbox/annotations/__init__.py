"""Annotation files: formats, finding them, the table of boxes, splits, reading and writing."""
