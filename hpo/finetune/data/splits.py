"""Splits that have no files, set aside from train: seeded, stratified, rows that belong together on one side."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hpo.config.schema import DataConfig
from hpo.core.errors import DataError

Array = np.ndarray[Any, Any]


def numbered(values: Iterable[Hashable]) -> Array:
    """Return [n] int64: for each value the number of its kind, in the order in which kinds first occur."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(value, len(seen)) for value in values], dtype=np.int64)


def together(rows: Sequence[Hashable], groups: Sequence[Hashable] | None = None) -> Array:
    """Return which rows belong together: those that are equal, those of one group, and those linked by such rows.

    Args:
        rows: What is compared, n of them: texts, or pairs.
        groups: The group of each row, if there are any.

    Returns:
        [n] int64, the same number for rows that belong together.
    """
    kinds = numbered(rows)
    if groups is None or not len(kinds):
        return kinds
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    members = numbered(groups)
    texts, count = int(kinds.max()) + 1, int(kinds.max() + members.max()) + 2
    links = coo_array((np.ones(len(kinds)), (kinds, texts + members)), shape=(count, count))
    return numbered(connected_components(links, directed=False)[1][kinds].tolist())


def set_aside(frames: dict[str, pd.DataFrame], config: DataConfig, task: str, rng: np.random.Generator) -> None:
    """Take the splits that have no files out of train.

    Args:
        frames: Split -> its rows, with train's; those set aside are added.
        config: What is set aside.
        task: Name in `TASKS`.
        rng: Draws the rows.

    Raises:
        DataError: More rows are asked for than there are.
    """
    total = len(frames["train"])
    choose = _stratified if config.group is None else _grouped
    for name in ("test", "validation"):
        share = getattr(config, name)
        if not isinstance(share, int | float):
            continue
        wanted = round(share * total) if isinstance(share, float) else share
        rest = len(frames["train"])
        if not 0 < wanted < rest:
            raise DataError(
                f"{name}: {share} asks for {wanted} rows of the {rest} that are left of train; give it another share "
                "or number, or a file"
            )
        chosen = choose(frames["train"], config, task, wanted, rng)
        frames[name] = frames["train"][chosen]
        frames["train"] = frames["train"][~chosen]


def texts_of(table: pd.DataFrame, config: DataConfig) -> list[tuple[str, ...]]:
    """Return the texts of each row, by which rows are equal."""
    return list(zip(*(table[c] for c in (config.text, config.text_pair) if c), strict=True))


def _stratified(table: pd.DataFrame, config: DataConfig, task: str, wanted: int, rng: np.random.Generator) -> Array:
    """Return which rows to set aside: about `wanted`, classes in proportion, duplicates together. [n] bool."""
    groups: dict[Any, list[int]] = {}
    for row, key in enumerate(texts_of(table, config)):
        groups.setdefault(key, []).append(row)
    strata: dict[Any, list[list[int]]] = {}
    for members in groups.values():
        stratum = table[config.label].iloc[members[0]] if task == "single_label" else None
        strata.setdefault(stratum, []).append(members)
    # Largest remainder: each class gets its exact share rounded down, then the largest fractions one more.
    exact = {k: wanted * sum(map(len, v)) / len(table) for k, v in strata.items()}
    quota = {k: int(share) for k, share in exact.items()}
    order = sorted(exact, key=lambda k: (quota[k] - exact[k], str(k)))
    for stratum in order[: wanted - sum(quota.values())]:
        quota[stratum] += 1
    chosen = np.zeros(len(table), dtype=bool)
    for stratum in sorted(strata, key=str):
        sizes = [len(members) for members in strata[stratum]]
        quota[stratum] = min(quota[stratum], sum(sizes) - max(sizes))  # train keeps some of every class
        taken = 0
        for index in rng.permutation(len(strata[stratum])):
            members = strata[stratum][index]
            if taken + len(members) <= quota[stratum]:
                chosen[members] = True
                taken += len(members)
    return chosen


def _grouped(table: pd.DataFrame, config: DataConfig, task: str, wanted: int, rng: np.random.Generator) -> Array:
    """Return which rows to set aside, groups whole, as near as may be to the classes' proportions. [n] bool.

    Largest first, else at random, a group changes sides if that brings the counts of rows and of each class nearer to
    their shares of `wanted` (squared distance over share), and train keeps some of every class; until none does.
    """
    groups = together(texts_of(table, config), list(table[config.group]))
    classes = numbered(table[config.label]) if task == "single_label" else np.zeros(len(table), dtype=np.int64)
    counts = np.zeros((groups.max() + 1, classes.max() + 2))
    np.add.at(counts, (groups, classes), 1)
    counts[:, -1] = counts.sum(axis=1)
    total = counts.sum(axis=0)
    aim, taken = total * wanted / len(table), np.zeros(len(total))
    order = rng.permutation(len(counts))
    order = order[np.argsort(-counts[order, -1], kind="stable")]
    chosen = np.zeros(len(counts), dtype=bool)
    moved = True
    while moved:  # it ends: the distance falls with every move
        moved = False
        for group in order:
            changed = taken - counts[group] if chosen[group] else taken + counts[group]
            if (changed < total).all() and ((changed - aim) ** 2 / aim).sum() < ((taken - aim) ** 2 / aim).sum():
                chosen[group], taken, moved = not chosen[group], changed, True
    return np.asarray(chosen[groups])
