"""What the user should know of the pairs of a study, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean

from hpo.core.errors import DataError
from hpo.tasks.dataset import SPLITS, Dataset
from hpo.tasks.rows import EncodedRows
from hpo.tasks.seq2seq.keys import PairKeys
from hpo.tasks.seq2seq.pairs import PairSplit


def refuse_unlearnable(train: PairSplit) -> None:
    """Refuse pairs of which all sources, or all targets, are equal.

    Raises:
        DataError: They are.
    """
    for key, texts in (("source", train.sources), ("target", train.targets)):
        if len(set(texts)) == 1:
            raise DataError(
                f"every row of train has the same {key}, {texts[0][:60]!r}: nothing can be learned. Name the column "
                f"of the {key}s under data: {key}"
            )


def of_data(data: Dataset) -> list[str]:
    """Return notes on sources with several targets, and on targets that are their sources."""
    found = []
    targets: dict[str, set[str]] = {}
    pairs = [pair for name in SPLITS for pair in _pairs(data.splits[name])]
    for source, target in pairs:
        targets.setdefault(source, set()).add(target)
    several = [source for source, known in targets.items() if len(known) > 1]
    if several:
        found.append(
            f"{len(several)} of {len(targets)} sources have more than one target, e.g. {several[0][:60]!r}: a model "
            "can give only one of them"
        )
    copies = sum(source == target for source, target in pairs)
    if copies == len(pairs):
        found.append("every target is equal to its source: a model learns to copy; check data: source and target")
    elif copies:
        found.append(f"{copies} of {len(pairs)} targets are equal to their source")
    return found


def of_rows(rows: Mapping[str, EncodedRows], max_target_length: int) -> list[str]:
    """Return notes on texts that are cut, with their number in each split."""
    sources = _counted({name: (each.alignment.cut_sources, len(each.example)) for name, each in rows.items()})
    targets = _counted({name: (each.alignment.cut_targets, len(each.example)) for name, each in rows.items()})
    found = []
    if sources:
        found.append(f"sources are cut, {sources}: what follows is not read; raise max_length")
    if targets:
        found.append(
            f"targets are cut at {max_target_length} tokens, {targets}: the rest is neither trained on nor scored, and "
            "the end token stands where they are cut; raise data.max_target_length"
        )
    return found


def _counted(cut: Mapping[str, tuple[int, int]]) -> str:
    """Return how many texts of each split are cut, in words; empty if none is."""
    return ", ".join(f"{some} of {count} of {name}" for name, (some, count) in cut.items() if some)


def facts(data: Dataset, keys: PairKeys) -> dict[str, str]:
    """Return how long sources and targets of train are, and the prefix."""
    train: PairSplit = data.splits["train"]
    lengths = {name: list(map(len, texts)) for name, texts in (("source", train.sources), ("target", train.targets))}
    said = [f"{mean(each):.0f} on average in a {name}, {max(each)} at most" for name, each in lengths.items()]
    found = {"characters": "; ".join(said)}
    return found | ({"before each source": repr(keys.prefix)} if keys.prefix else {})


def _pairs(split: PairSplit) -> list[tuple[str, str]]:
    return list(zip(split.sources, split.targets, strict=True))
