"""Extractive question answering: the answer to a question is a piece of a given context, or there is none."""
