"""Masked modelling of tokens: what is hidden, what it costs to guess it, and the task that both make."""
