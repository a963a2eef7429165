"""Sequence to sequence: a text from a text, such as a translation or a summary."""
