"""What every package stands on: errors, values, files, locks, signals."""
