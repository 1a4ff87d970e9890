"""A model as a service: over HTTP, and for Label Studio."""
