"""Rows: read, split, encoded, cut into batches."""
