"""The stage as other engines call it: a class for ceci and RAIL; docs/runners.md has the others."""
