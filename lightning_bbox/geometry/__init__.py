"""Boxes, crop boxes, codecs between boxes and targets, and laws of jitter."""
