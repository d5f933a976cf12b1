"""A search server: one index, one cache and one set of keys for any number of rollout workers."""
