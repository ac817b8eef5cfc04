"""What an engine process does beside training: one file, one job."""
