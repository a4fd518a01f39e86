"""Models in segments on a device, as the scheduler runs them."""
