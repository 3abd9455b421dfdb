"""Which tokens of an object are inputs and which are targets: policies, pure and row by row."""
