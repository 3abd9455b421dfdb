"""Wandering through an embedding: likeness and sky side by side, with pictures and neighbours."""

from skyvec.explorer.opening import explore

__all__ = ["explore"]
