"""What is wrong with a release, from a small raw sample of it."""
