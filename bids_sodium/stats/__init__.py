"""Statistics: arrays and small data frames in, frozen results out."""
