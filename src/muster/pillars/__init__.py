"""The three pillars: what makes waiting for data, computing and waiting for others fast."""
