"""``python -m skyvec_training <command>``: one module for each command."""
