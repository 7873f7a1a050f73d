"""Training loops and merge rules; knows no application. May import pillars, fleet, engine and spec."""
