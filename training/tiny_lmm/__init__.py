"""The recipe of the tiny LMM that the quickstart trains: architecture, lessons, and how they are taught."""
