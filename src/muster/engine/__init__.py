"""The engine: gangs of ranks, run folders, records, checkpoints and the pillar clock. May import spec and errors."""
