"""What this machine can do: ``skyvec doctor``."""
