"""What a person sees of a run: sheets of crops, tables, charts, logs."""
