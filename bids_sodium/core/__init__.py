"""The language of the app: constants, errors, data and table columns; no files, no processes."""
