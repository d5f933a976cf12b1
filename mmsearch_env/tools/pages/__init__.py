"""Reading pages that a search found, and saying briefly what they say about a question."""
