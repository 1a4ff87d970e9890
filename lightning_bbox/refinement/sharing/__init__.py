"""A trained model as others get it: a folder, its card, and where it is fetched from."""
