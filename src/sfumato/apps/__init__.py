"""Programs made of the device's and the cloud's side: the studio, the demo, the doctor."""
