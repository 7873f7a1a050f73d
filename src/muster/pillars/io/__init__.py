"""I/O: samples in a store, read ahead of their use, cached where they are needed."""
