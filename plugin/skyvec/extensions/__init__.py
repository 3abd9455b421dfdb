"""Extension catalogs: what is published, how it is read, checked and taken away."""
