"""Which object of a source belongs to which row."""
