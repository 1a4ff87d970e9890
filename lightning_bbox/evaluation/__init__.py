"""What a test measures, and how sure it is."""
