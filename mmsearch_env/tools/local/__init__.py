"""The embedded search engine: text by BM25, pictures by nearest descriptors; offline and fast."""
