"""Documents, and tiny studies of masked language models, built in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tiny


def texts(count: int, seed: int = 0) -> list[str]:
    """Return documents in which each word follows from the one before: `w1 w2 w3 ...` from a random start on."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        start, length = int(rng.integers(60)), int(rng.integers(4, 40))
        found.append(" ".join(f"w{(start + i) % 60}" for i in range(length)))
    return found


def write(path: Path, found: list[str]) -> Path:
    """Write documents as JSONL."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in found), encoding="utf-8")
    return path


def tokenizer() -> Any:
    """Return the tokenizer of the tiny models, with a mask token."""
    made = tiny.tokenizer()
    made.add_special_tokens({"mask_token": "[MASK]"})
    return made


def save_model(folder: Path, kind: str = "bert") -> Path:
    """Write a tiny masked language model with its head."""
    import torch
    from transformers import AutoModelForMaskedLM

    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(tiny._config(kind)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def study(folder: Path, **overrides: Any) -> dict[str, Any]:
    """Return a study of documents in `folder`: as `tiny.study`; some documents have several windows."""
    if not (folder / "model").exists():
        save_model(folder / "model")
    if not (folder / "documents.jsonl").exists():
        write(folder / "documents.jsonl", texts(160))
    data = {"train": str(folder / "documents.jsonl"), "validation": 30, "test": 30, **overrides.pop("data", {})}
    settings = {"name": "masks", "task": "masked_lm", "max_length": 24, "evaluations_per_epoch": 1}
    return tiny.study(folder, **{**settings, "data": data, **overrides})
