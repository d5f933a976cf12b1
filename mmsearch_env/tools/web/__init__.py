"""Search services on the web, each one small file that does no I/O of its own."""
