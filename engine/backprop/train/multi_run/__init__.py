"""Several runs, merged into one adapter."""
