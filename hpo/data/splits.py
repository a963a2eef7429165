"""Validation and test splits that are set aside from train: seeded and stratified.

Rows with equal texts, or of one group, stay in the same split.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hpo.core.errors import DataError
from hpo.data.keys import DataKeys

Array = np.ndarray[Any, Any]


def numbered(values: Iterable[Hashable]) -> Array:
    """Return [n] int64: for each value the index of the distinct value, in order of first occurrence."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(value, len(seen)) for value in values], dtype=np.int64)


def together(rows: Sequence[Hashable], groups: Sequence[Hashable] | None = None) -> Array:
    """Return the connected components of rows: equal rows, and rows of one group, are connected.

    Args:
        rows: n texts, or pairs of texts.
        groups: The group of each row, if there are groups.

    Returns:
        [n] int64, the number of each row's component.
    """
    texts = numbered(rows)
    if groups is None or not len(texts):
        return texts
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    members = numbered(groups)
    first_group, nodes = int(texts.max()) + 1, int(texts.max() + members.max()) + 2
    edges = coo_array((np.ones(len(texts)), (texts, first_group + members)), shape=(nodes, nodes))
    return numbered(connected_components(edges, directed=False)[1][texts].tolist())


def set_aside(
    frames: dict[str, pd.DataFrame],
    keys: DataKeys,
    contents: Callable[[pd.DataFrame], Sequence[Hashable]],
    groups: Callable[[pd.DataFrame], Sequence[Hashable] | None],
    strata: Callable[[pd.DataFrame], Sequence[Hashable] | None],
    rng: np.random.Generator,
) -> None:
    """Move rows of train to the splits that have no files.

    Args:
        frames: Split -> its rows; train is made smaller, and the splits that are set aside are added.
        keys: Shares or numbers of the rows to set aside.
        contents: Rows -> what each of them says; rows that say the same stay in one split.
        groups: Rows -> the group of each row, which stays in one split; None if there are no groups.
        strata: Rows -> the class of each row, whose proportions are kept; None if rows have no classes.
        rng: Draws the rows.

    Raises:
        DataError: Train has too few rows for it.
    """
    total = len(frames["train"])
    for name in ("test", "validation"):
        share = getattr(keys, name)
        if not isinstance(share, int | float):
            continue
        train = frames["train"]
        wanted = round(share * total) if isinstance(share, float) else share
        if not 0 < wanted < len(train):
            raise DataError(
                f"{name}: {share} asks for {wanted} rows of the {len(train)} that are left of train; give it another "
                "share or number, or a file"
            )
        members = groups(train)
        if members is None:
            chosen = _stratified(contents(train), strata(train), wanted, rng)
        else:
            chosen = _grouped(together(contents(train), members), strata(train), wanted, rng)
        frames[name], frames["train"] = train[chosen], train[~chosen]


def _stratified(
    contents: Sequence[Hashable], classes: Sequence[Hashable] | None, wanted: int, rng: np.random.Generator
) -> Array:
    """Return [n] bool: about `wanted` rows to set aside, stratified by class, with duplicates on one side."""
    groups: dict[Hashable, list[int]] = {}
    for row, key in enumerate(contents):
        groups.setdefault(key, []).append(row)
    strata: dict[Hashable, list[list[int]]] = {}
    for members in groups.values():
        strata.setdefault(None if classes is None else classes[members[0]], []).append(members)
    # Largest remainder: each class gets its exact share rounded down, then the largest fractions one more.
    exact = {k: wanted * sum(map(len, v)) / len(contents) for k, v in strata.items()}
    quota = {k: int(share) for k, share in exact.items()}
    order = sorted(exact, key=lambda k: (quota[k] - exact[k], str(k)))
    for stratum in order[: wanted - sum(quota.values())]:
        quota[stratum] += 1
    chosen = np.zeros(len(contents), dtype=bool)
    for stratum in sorted(strata, key=str):
        sizes = [len(members) for members in strata[stratum]]
        quota[stratum] = min(quota[stratum], sum(sizes) - max(sizes))  # some rows of every class stay in train
        taken = 0
        for index in rng.permutation(len(strata[stratum])):
            members = strata[stratum][index]
            if taken + len(members) <= quota[stratum]:
                chosen[members] = True
                taken += len(members)
    return chosen


def _grouped(groups: Array, classes: Sequence[Hashable] | None, wanted: int, rng: np.random.Generator) -> Array:
    """Return [n] bool: the rows to set aside, in whole groups, with class proportions as near as possible to train's.

    A local search: groups are visited by falling size, equal ones in random order. A group changes sides if that brings
    the counts of rows and of each class nearer to their shares of `wanted` (sum of squared differences over shares),
    and if some rows of every class stay in train. The search ends when no group changes sides.
    """
    total_rows = len(groups)
    numbers = np.zeros(total_rows, dtype=np.int64) if classes is None else numbered(classes)
    counts = np.zeros((groups.max() + 1, numbers.max() + 2))
    np.add.at(counts, (groups, numbers), 1)
    counts[:, -1] = counts.sum(axis=1)
    total = counts.sum(axis=0)
    target, taken = total * wanted / total_rows, np.zeros(len(total))
    order = rng.permutation(len(counts))
    order = order[np.argsort(-counts[order, -1], kind="stable")]
    chosen = np.zeros(len(counts), dtype=bool)
    moved = True
    while moved:  # this ends, as every move reduces the distance
        moved = False
        for group in order:
            changed = taken - counts[group] if chosen[group] else taken + counts[group]
            if (changed < total).all() and ((changed - target) ** 2 / target).sum() < (
                (taken - target) ** 2 / target
            ).sum():
                chosen[group], taken, moved = not chosen[group], changed, True
    return np.asarray(chosen[groups])
