"""An offline page on loopback: scans of one folder, and what a model says of them."""
