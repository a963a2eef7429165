"""Causal language models: conversations, prompts with completions, and plain text."""
