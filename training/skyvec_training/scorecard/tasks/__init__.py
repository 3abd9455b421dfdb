"""Tasks that go beyond one head on one input set."""
