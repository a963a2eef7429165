"""The rows of an epoch where several tasks are mixed, as a pure function of (tasks, temperature, seed, epoch).

A task of n rows gets a share of the epoch in proportion to n ** (1 / temperature): temperature-scaled mixing (Raffel et
al., 2020, section 3.5.2). At 1 each row is there once; the higher the temperature, the more equal the shares. An epoch
has as many rows as the training split at every temperature, so that evaluations are at the same places in all trials.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def mixed(tasks: Array, temperature: float, seed: int, epoch: int) -> Array:
    """Return the rows of an epoch, [n].

    The rows of a task are passed through in a fresh order each time, and an epoch goes on where the one before it has
    ended. So all rows of a task are seen equally often, up to one.

    Args:
        tasks: [n] number of the task, from 0, of each row.
        temperature: At least 1.
        seed: The trial's.
        epoch: From 0.
    """
    counts = drawn(np.bincount(tasks), temperature)
    return np.concatenate(
        [_next(np.flatnonzero(tasks == task), int(count), seed, task, epoch) for task, count in enumerate(counts)]
    )


def drawn(sizes: Array, temperature: float) -> Array:
    """Return how many rows of each task an epoch has: whole numbers that add up to the sum of the sizes.

    Args:
        sizes: Rows of each task.
        temperature: At least 1.
    """
    rates = (sizes / sizes.max()) ** (1 / temperature)
    exact = rates / rates.sum() * sizes.sum()
    counts: Array = np.floor(exact).astype(np.int64)
    left = int(sizes.sum() - counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:left]] += 1  # the largest remainders
    return counts


def _next(rows: Array, count: int, seed: int, task: int, epoch: int) -> Array:
    """Return the `count` rows of a task with which an epoch goes on."""
    first, last = epoch * count, (epoch + 1) * count
    passes = range(first // len(rows), -(-last // len(rows)))
    orders = [np.random.default_rng((seed, task, number)).permutation(rows) for number in passes]
    start = first - passes.start * len(rows)
    every: Array = np.concatenate([*orders, rows[:0]])
    return every[start : start + count]
