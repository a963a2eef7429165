"""Whether tags can be learned and scored, and what of them is doubtful."""

from __future__ import annotations

from collections import Counter
from itertools import chain

from hpo.core.errors import DataError
from hpo.core.formatting import plain
from hpo.tasks.dataset import SPLITS, Dataset, small_splits
from hpo.tasks.token_classification.metrics import is_of_entities
from hpo.tasks.token_classification.schemes import entities
from hpo.tasks.token_classification.sentences import TagSplit

RARE = 10  # entities of a type, or words of a tag; each is 0.1 of its recall
MOST_NAMED = 5


def counted(split: TagSplit) -> Counter[str]:
    """Return type -> its entities, or tag -> its words where tags write no entities."""
    if not split.entities:
        return Counter(chain.from_iterable(sentence.tags for sentence in split.sentences))
    return Counter(entity.type for sentence in split.sentences for entity in entities(sentence.tags))


def things(split: TagSplit) -> tuple[str, str]:
    """Return what `counted` counts, and its kinds, in the plural."""
    return ("entities", "types of entities") if split.entities else ("words", "tags")


def refuse_unlearnable(train: TagSplit) -> None:
    """Refuse tags that are all the same.

    Raises:
        DataError: They are.
    """
    tags = Counter(chain.from_iterable(sentence.tags for sentence in train.sentences))
    if len(tags) == 1:
        raise DataError(
            f"every word of train has the tag {next(iter(tags))!r}: nothing can be learned. Name the column of the "
            "tags under data: tags, or tag_column for CoNLL files"
        )


def refuse_metric(metric: str, data: Dataset) -> None:
    """Refuse a metric of entities where there are none; see `Task.refuse_metric`."""
    if not is_of_entities(metric):
        return
    if not data.splits["train"].entities:
        some = ", ".join(map(repr, data.labels[:MOST_NAMED]))
        raise DataError(
            f"metric {metric!r} is for tags that write entities (B-PER, I-PER, O), and these are {some} ...: choose "
            "token_accuracy"
        )
    without = [name for name in ("validation", "test") if not counted(data.splits[name])]
    if without:
        raise DataError(
            f"metric {metric!r} is 0 on the {' and '.join(without)} split whatever is predicted, as it has no entity: "
            "choose another metric, or a larger split"
        )


def notes(data: Dataset) -> list[str]:
    """Return a note on types or tags of validation and test that train has not: no model finds them."""
    train = counted(data.splits["train"])
    what, kinds = things(data.splits["train"])
    found = []
    for name in ("validation", "test"):
        unseen = {kind: count for kind, count in counted(data.splits[name]).items() if kind not in train}
        if unseen:
            found.append(
                f"{name} has {len(unseen)} {kinds} that train has not ({_listed(unseen, what)}): no model finds them"
            )
    return found


def doubts(data: Dataset, metric: str) -> list[str]:
    """Return notes on small splits, and on types or tags that are rare in train or in test."""
    found = small_splits(data, metric, "sentence", share=False)
    what, kinds = things(data.splits["train"])
    for name in ("train", "test"):
        rare = {kind: count for kind, count in counted(data.splits[name]).items() if count < RARE}
        if rare:
            found.append(f"{len(rare)} {kinds} of {name} are rare: {_listed(rare, what)}")
    return found


def facts(data: Dataset) -> dict[str, str]:
    """Return how many entities of each type, or words of each tag, train has, and the words of all splits."""
    train = data.splits["train"]
    words = ", ".join(f"{sum(len(each.words) for each in data.splits[name].sentences):,} {name}" for name in SPLITS)
    return {"words": words, things(train)[1]: _listed(dict(counted(train).most_common()), "", most=12)}


def _listed(counts: dict[str, int], what: str, most: int = MOST_NAMED) -> str:
    shown = ", ".join(f"{plain(kind)} {count:,}" for kind, count in list(counts.items())[:most])
    more = f" and {len(counts) - most} more" if len(counts) > most else ""
    return f"{shown}{more}{' ' * bool(what)}{what}"
