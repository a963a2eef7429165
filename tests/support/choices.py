"""Texts with choices, and tiny studies of them, built in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tiny

from hpo.tasks.dataset import Dataset
from hpo.tasks.loading import load
from hpo.tasks.multiple_choice.keys import ChoiceKeys


def rows(count: int, choices: int = 4, seed: int = 0) -> list[dict[str, Any]]:
    """Return rows in SWAG's form; the right ending has words of the topic `good`, the others of `bad`."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        label = int(rng.integers(choices))
        endings = [tiny.sentence(rng, "good" if i == label else "bad", 1, 6) for i in range(choices)]
        context = f"w{number % 60} " + " ".join(rng.choice(tiny.FILLER, rng.integers(2, 8)))
        found.append(
            {"sent1": context, "sent2": "w7", "label": label} | {f"ending{i}": e for i, e in enumerate(endings)}
        )
    return found


def write(path: Path, found: list[dict[str, Any]]) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


SWAG = {"context": "sent1", "question": "sent2", "choices": [f"ending{i}" for i in range(4)]}


def study(folder: Path, **overrides: Any) -> dict[str, Any]:
    """Return a study of SWAG's form in `folder`: as `tiny.study`."""
    if not (folder / "swag.jsonl").exists():
        write(folder / "swag.jsonl", rows(140))
    data = {"train": str(folder / "swag.jsonl"), "validation": 30, "test": 30, **SWAG, **overrides.pop("data", {})}
    settings = {"name": "chosen", "task": "multiple_choice", "max_length": 24, "evaluations_per_epoch": 1}
    return tiny.study(folder, **{**settings, "data": data, **overrides})


def read(path: Path, found: list[dict[str, Any]], **keys: Any) -> Dataset:
    """Write rows, and read them as the data of a study; validation and test are other rows of the same form."""
    write(path, found)
    return load(ChoiceKeys.model_validate({"train": str(path), **keys}), "multiple_choice", 0, path.parent)
