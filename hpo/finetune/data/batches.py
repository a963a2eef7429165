"""The batches of an epoch: shuffled rows, grouped by length, as a pure function of (lengths, size, seed, epoch)."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Batches whose rows are sorted by length together. More pad less, but mix rows less; 32 leave about 5 % padding.
WINDOW = 32


def epoch_batches(
    lengths: Array, batch_size: int, seed: int, epoch: int, window: int = WINDOW, rows: Array | None = None
) -> list[Array]:
    """Return the batches of one epoch.

    Rows are shuffled, divided into windows of `window` batches, sorted by length inside a window and divided into
    batches. Full batches are shuffled; a short one, if any, comes last, as in a plain loop.

    Args:
        lengths: [n] tokens of each row.
        batch_size: Rows of a batch.
        seed: The trial's seed.
        epoch: From 0.
        window: Batches whose rows are sorted by length together; with 1, rows are not sorted.
        rows: The rows of the epoch, of which one may be there several times; each row once if None.

    Returns:
        Arrays of row numbers, which contain each of the rows once.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths) if rows is None else rows)
    full = len(order) // batch_size * batch_size
    batches: list[Array] = []
    for start in range(0, full, window * batch_size):
        part = order[start : min(start + window * batch_size, full)]
        if window > 1:
            part = part[np.argsort(lengths[part], kind="stable")]
        batches += np.split(part, len(part) // batch_size)
    rng.shuffle(batches)
    if full < len(order):
        batches.append(order[full:])
    return batches


def boundaries(rows: int, evaluations: int, epochs: int) -> list[int]:
    """Return the number of examples seen at each evaluation of a trial; it does not depend on the batch size."""
    return [round(k * rows / evaluations) for k in range(1, evaluations * epochs + 1)]


def by_length(lengths: Array, size: int) -> list[Array]:
    """Return all rows in order of length, in arrays of at most `size`: the batches of an evaluation."""
    order = np.argsort(lengths, kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]
