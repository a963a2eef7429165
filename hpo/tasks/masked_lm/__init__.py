"""Masked language models: the hidden tokens of a text, to go on with the pretraining of an encoder."""
