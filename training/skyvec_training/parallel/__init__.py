"""One training step on many processes: who they are, who holds what, and how they stop."""
