"""What the bytes look like at the borders: columns, units, flags, provenance, errors. No torch."""
