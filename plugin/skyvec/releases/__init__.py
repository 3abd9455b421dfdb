"""Releases on disk -> observations of one HATS pixel."""
