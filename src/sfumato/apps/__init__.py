"""Programs that combine device and cloud: the studio, the demo, the doctor."""
