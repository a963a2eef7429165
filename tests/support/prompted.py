"""Prompts with completions for a tiny causal model: the words of the prompt again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chats
import numpy as np
import tiny


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Return prompts of one to three words, each with its first word as the completion."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        words = [f"w{i}" for i in rng.integers(0, 12, rng.integers(1, 4))]
        found.append({"prompt": f"{' '.join(words)} ?", "completion": words[0]})
    return found


def study(folder: Path, **overrides: Any) -> dict[str, Any]:
    """Return a study file's content: a tiny Llama and prompts in `folder`, four random trials."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if not (folder / "model").exists():
        words = chats.tokenizer(None)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            size = tiny.SIZES["bert"] | {"num_key_value_heads": 2, "max_position_embeddings": 64}
            ends = {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id, "bos_token_id": 1}
            LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **size, **ends)).save_pretrained(folder / "model")
        words.save_pretrained(folder / "model")
        chats.write(folder / "prompts.jsonl", rows(160))
    data = {"train": str(folder / "prompts.jsonl"), "validation": 30, "test": 30, "chat_template": "plain"}
    data |= overrides.pop("data", {})
    return tiny.study(folder, task="causal_lm", data=data, **{"max_length": 24, **overrides})
