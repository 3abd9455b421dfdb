"""From observations to one vector: modalities, codecs, transformer, pooling, weights. torch only."""

NUMERICS_VERSION = 2
"""Raised by every change that moves a token or a vector; part of every fingerprint."""
