"""The checks of a diagnosis, and how one that raises is told."""
