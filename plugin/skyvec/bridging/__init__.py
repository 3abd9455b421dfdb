"""How bridges between the vectors of two models come about."""
