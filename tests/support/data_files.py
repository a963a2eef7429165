"""Tables on disk, and the data that a study reads from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from hpo.tasks import loading
from hpo.tasks.classification.keys import TextKeys
from hpo.tasks.dataset import Dataset

GOOD = {"text": [f"t{i}" for i in range(40)], "label": ["a", "b"] * 20}


def config(**settings: Any) -> TextKeys:
    return TextKeys.model_validate({"train": "train.csv", **settings})


def load(folder: Path, task: str = "auto", seed: int = 0, **settings: Any) -> Dataset:
    return loading.load(config(**settings), task, seed, folder)


def frame(folder: Path, name: str = "train.csv", **columns: Any) -> None:
    """Write columns as a CSV file."""
    pd.DataFrame(columns).to_csv(folder / name, index=False)


def texts(dataset: Dataset) -> set[str]:
    """Return the texts of all splits."""
    return {text for split in dataset.splits.values() for text in split.texts}
