"""Search in a corpus of one's own: built once from files, kept up to date, read by many processes."""
