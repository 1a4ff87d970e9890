"""What networks are made of: preprocessing, inits, losses, regularizers, schedules, calibration."""
