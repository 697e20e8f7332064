"""Stand-in vendors on loopback, and the demonstration that drives real client libraries past them."""
