"""Heads on a trained model: alignment with other modalities and words, pools, adapters."""
