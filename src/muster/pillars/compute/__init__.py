"""Compute: precision, memory for time, and what this machine can do at most."""
