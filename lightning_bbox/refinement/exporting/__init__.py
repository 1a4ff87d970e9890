"""A trained model as one graph that runs without Python."""
