"""Crops to features."""
