"""A study of several tasks on a tiny model: labels of texts, tags of words, answers to questions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import squad_rows
import tagged
import tiny

TASKS = ("sentiment", "entities", "questions")


def tasks(folder: Path, names: Iterable[str] = TASKS) -> dict[str, dict[str, Any]]:
    """Return the tasks of a study file, whose data is in `folder`."""
    if not (folder / "data.csv").exists():
        tiny.write_csv(folder / "data.csv", 120)
    if not (folder / "data.conll").exists():
        tagged.write_conll(folder / "data.conll", tagged.sentences(100))
    if not (folder / "questions.jsonl").exists():
        squad_rows.write(folder / "questions.jsonl", squad_rows.topics(160))
    sizes = {"validation": 30, "test": 30}
    every = {
        "sentiment": {"task": "single_label", "data": {"train": str(folder / "data.csv"), **sizes}},
        "entities": {
            "task": "token_classification",
            "data": {"train": str(folder / "data.conll"), "stride": 3, **sizes},
            "weight": 2.0,
        },
        "questions": {
            "task": "question_answering",
            "data": {"train": str(folder / "questions.jsonl"), "stride": 4, **sizes},
        },
    }
    return {name: every[name] for name in names}


def study(folder: Path, names: Iterable[str] = TASKS, **overrides: Any) -> dict[str, Any]:
    """Return a study of several tasks in `folder`: as `tiny.study`; some rows are windows."""
    raw = tiny.study(folder, **{"name": "several", "max_length": 16, "tasks": tasks(folder, names), **overrides})
    del raw["data"]
    return raw
