"""How good a model is on a release: tasks, heads, baselines, intervals, one JSON and one page."""
