"""Tracks: a file for each sequence, whose pictures are numbered."""
