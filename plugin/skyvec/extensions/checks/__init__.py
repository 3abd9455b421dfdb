"""What `skyvec.extensions.verify` looks at, one check a module."""
