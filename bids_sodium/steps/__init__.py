"""Read, one pure call, write: the stages of the participant level."""
