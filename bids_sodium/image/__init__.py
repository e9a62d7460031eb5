"""From image to a number with a unit."""
