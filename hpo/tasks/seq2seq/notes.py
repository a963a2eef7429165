"""What the user should know of the pairs of a study, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean

from hpo.core.errors import DataError
from hpo.tasks.dataset import SPLITS, Dataset
from hpo.tasks.seq2seq.keys import PairKeys
from hpo.tasks.seq2seq.pairs import PairSplit
from hpo.tasks.task import EncodedRows


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
    found = []
    for name, encoded in rows.items():
        count, cut = len(encoded.example), encoded.alignment
        if cut.cut_sources:
            found.append(f"{cut.cut_sources} of {count} sources of {name} are cut; raise max_length to read on")
        if cut.cut_targets:
            lost = "not trained on" if name == "train" else "not scored"
            found.append(
                f"{cut.cut_targets} of {count} targets of {name} are cut at {max_target_length} tokens: the rest is "
                f"{lost}, and the end token stands where they are cut; raise data.max_target_length"
            )
    return found


def facts(data: Dataset, keys: PairKeys) -> dict[str, str]:
    """Return how long sources and targets of train are, and the prefix."""
    train: PairSplit = data.splits["train"]
    lengths = {name: list(map(len, texts)) for name, texts in (("source", train.sources), ("target", train.targets))}
    said = [f"{mean(each):.0f} on average in a {name}, {max(each)} at most" for name, each in lengths.items()]
    found = {"characters": "; ".join(said)}
    return found | ({"before each source": repr(keys.prefix)} if keys.prefix else {})


def _pairs(split: PairSplit) -> list[tuple[str, str]]:
    return list(zip(split.sources, split.targets, strict=True))
