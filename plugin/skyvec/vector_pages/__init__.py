"""Vectors straight from the pages of a Parquet file, without decoding them."""
