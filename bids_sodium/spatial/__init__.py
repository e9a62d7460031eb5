"""Where things are: transforms, registration, resampling, the mirror."""
