"""What a training does beside its steps: sizes, rates, stops, and losses that are not finite."""
