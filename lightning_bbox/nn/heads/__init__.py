"""Features to targets, with their losses."""
