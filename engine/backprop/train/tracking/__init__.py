"""Where a run's curves go beside its journal."""
