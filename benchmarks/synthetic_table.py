"""A table of recorded runs that were never trained: another space and other curves than those of DeBERTaV3 on MultiNLI.

The best learning rate depends on the batch size. A low learning rate learns slowly, so that the best rate at first is
higher than the best one in the end. A high one diverges. Weight decay matters, the other two parameters do not. Scores
have the error of 3,000 validation rows.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import recorded

SYNTHETIC = "synthetic"
ROWS = 20_000  # of the training split
EVERY = 250  # steps between two evaluations
SLOW = 10_000  # examples in which two thirds of what is to be learned are learned, at the best learning rate
ERROR = 0.0075  # standard error of a score of 0.8 on 3,000 rows


def read(given: str) -> tuple[recorded.Table, str]:
    """Return the table of a file, or this one if `SYNTHETIC` is given; and its name without folders."""
    if given == SYNTHETIC:
        return table(), SYNTHETIC
    return recorded.read(Path(given)), Path(given).name


def table(runs: int = 1000, seed: int = 0) -> recorded.Table:
    """Return a table of so many runs."""
    random = np.random.default_rng(seed)
    return recorded.table_of([_row(random) for _ in range(runs)])


def _row(random: np.random.Generator) -> dict[str, Any]:
    batch, epochs = int(2 ** random.uniform(3, 6)), int(random.integers(2, 11))
    rate, decay = 10 ** random.uniform(-6, -2), 10 ** random.uniform(-4, 0)
    steps = epochs * ROWS // batch
    best = 1e-4 * math.sqrt(batch / 16)
    away = math.log10(rate / best)
    end = 0.82 - 0.04 * away**2 - 0.02 * (math.log10(decay) + 2) ** 2 / 4 + 0.01 * (epochs - 6) / 4
    diverges = away > random.normal(1.2, 0.1)
    points = [*range(EVERY, steps, EVERY), steps]
    speed = 10 ** (0.3 * away) / SLOW
    truth = [0.5 if diverges else max(0.5, end - 0.2 * math.exp(-at * batch * speed)) for at in points]
    curve = [[at, float(score + random.normal(0, ERROR))] for at, score in zip(points, truth, strict=True)]
    return {
        "num_train_epochs": epochs,
        "train_batch_size": batch,
        "total_model_steps": steps,
        "learning_rate": rate,
        "weight_decay": decay,
        "dropout": random.uniform(0, 0.5),
        "warmup_steps": int(random.uniform(0, 0.5) * steps / epochs),
        "learning_curves": {"matched": curve, "mismatched": [[steps, truth[-1] + random.normal(0, ERROR / 3)]]},
    }
