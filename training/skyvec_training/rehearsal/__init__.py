"""A training step on hundreds of GPUs, rehearsed by one laptop core without any weights."""
