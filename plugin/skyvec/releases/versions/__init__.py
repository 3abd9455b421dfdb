"""Releases as immutable versions: what each holds, and what changed between two."""
