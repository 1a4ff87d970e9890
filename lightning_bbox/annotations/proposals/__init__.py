"""Proposals beside the true boxes: reading them, and matching each to the box that it means."""
