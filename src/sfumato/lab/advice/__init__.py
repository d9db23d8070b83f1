"""Which way to go: a local net, a gate, a sketch, a thumbnail or the plain image, measured and recommended."""
