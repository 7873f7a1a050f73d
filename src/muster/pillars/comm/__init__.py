"""Communication: the link, what goes over it, and in which pieces."""
