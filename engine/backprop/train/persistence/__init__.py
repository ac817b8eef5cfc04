"""What of a run is on the disk, and how it goes on from there."""
