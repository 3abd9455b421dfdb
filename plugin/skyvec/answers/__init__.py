"""What a question to a catalog gives back: a table that can be seen, shown and saved."""
