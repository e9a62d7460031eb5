"""From k-space to image."""
