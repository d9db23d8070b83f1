"""What lies on disk: bundles and what they state, each written in one place and read in one place."""
