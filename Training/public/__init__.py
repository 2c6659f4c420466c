"""Clinical tables of public collections, read as labels."""
