"""Configurations measured against each other."""
