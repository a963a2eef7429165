"""Tagged sentences and tiny models for them, built in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tiny

from hpo.tasks.dataset import Dataset
from hpo.tasks.loading import load
from hpo.tasks.token_classification.keys import TagKeys

Tagged = list[tuple[str, str]]  # (word, tag)

TYPES = {"GOOD": tiny.TOPICS["good"], "BAD": tiny.TOPICS["bad"]}


def sentence(rng: np.random.Generator, low: int = 3, high: int = 12) -> Tagged:
    """Return filler with up to two entities in IOB2; a word of a topic begins one, and goes on after another of it."""
    found = [(str(word), "O") for word in rng.choice(tiny.FILLER, rng.integers(low, high))]
    for _ in range(rng.integers(0, 3)):
        kind = str(rng.choice(list(TYPES)))
        words = rng.choice(TYPES[kind], rng.integers(1, 3))
        place = int(rng.integers(0, len(found) + 1))
        while 0 < place < len(found) and found[place][1][:1] == "I":
            place += 1
        found[place:place] = [(str(word), f"{'I' if i else 'B'}-{kind}") for i, word in enumerate(words)]
    return found


def sentences(count: int, seed: int = 0, **sizes: int) -> list[Tagged]:
    """Return tagged sentences."""
    rng = np.random.default_rng(seed)
    return [sentence(rng, **sizes) for _ in range(count)]


def write_conll(path: Path, found: list[Tagged], between: str = "\n") -> Path:
    """Write a CoNLL file; `between` stands after each sentence."""
    path.write_text(between.join("".join(f"{word} {tag}\n" for word, tag in each) for each in found), encoding="utf-8")
    return path


def roles(count: int, seed: int = 0) -> str:
    """Return a CoNLL file of sentences with a marked predicate, a word of the topic `good` among others of it.

    The words before the predicate that are of the topic `bad` are its agents, and those after it its themes.
    """
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        words = [str(word) for word in rng.choice([*tiny.FILLER[:20], *TYPES["BAD"]], rng.integers(4, 9))]
        places = np.sort(rng.choice(len(words), 2, replace=False))
        for place in places:
            words[place] = str(rng.choice(TYPES["GOOD"]))
        verb = int(rng.choice(places))
        tags = [("B-A0" if i < verb else "B-A1") if word in TYPES["BAD"] else "O" for i, word in enumerate(words)]
        tags[verb] = "B-V"
        rows = zip(words, tags, strict=True)
        found.append("".join(f"{word} {'-x'[i == verb]} {tag}\n" for i, (word, tag) in enumerate(rows)))
    return "\n".join(found)


def study(folder: Path, count: int = 140, **overrides: Any) -> dict[str, Any]:
    """Return a study file's content: a tiny model and a CoNLL file in `folder`, four random trials."""
    if not (folder / "data.conll").exists():
        write_conll(folder / "data.conll", sentences(count))
    data = {"train": str(folder / "data.conll"), "validation": 30, "test": 30, **overrides.pop("data", {})}
    return tiny.study(folder, task="token_classification", data=data, **overrides)


def read(folder: Path, seed: int = 0, **keys: Any) -> Dataset:
    """Read the data of a study."""
    return load(TagKeys.model_validate(keys), "token_classification", seed, folder)
