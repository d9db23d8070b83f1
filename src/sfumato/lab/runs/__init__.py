"""What the lab has made already, making what it has not, and how long that takes."""
