"""What one training run is, read from a recipe (TOML); unknown keys are refused."""
