"""Releases repacked to what an embedding reads."""
