"""What lies on disk, each type written in one place and read in one place: bundles and their records."""
