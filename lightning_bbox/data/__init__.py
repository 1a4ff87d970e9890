"""Samples and batches, their loader, and the data modules."""
