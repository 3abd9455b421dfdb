"""Mock surveys: a sky with known truth, for demos, tests and the first training."""
