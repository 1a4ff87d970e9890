"""What knows neither boxes nor pictures: errors, files, recipes, keyed randomness, compiling."""
