"""HATS catalogs, local or remote: as the input of the stage, and as a source."""
