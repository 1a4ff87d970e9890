"""Machinery for CUDA that no card has proved yet; the rest of the package works without it."""
