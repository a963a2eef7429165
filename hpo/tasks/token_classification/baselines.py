"""Cheap baselines for tags: the most frequent tag for every word, and for each word the one that it has most often.

The second is the usual baseline for parts of speech (Jurafsky and Martin, Speech and Language Processing, chapter 17).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hpo.core.formatting import plain
from hpo.tasks.dataset import Dataset
from hpo.tasks.task import Reference
from hpo.tasks.token_classification.predictions import TagPredictions
from hpo.tasks.token_classification.sentences import TagSplit

Array = np.ndarray[Any, Any]


def references(data: Dataset) -> dict[str, Reference | None]:
    """Return both baselines on the test split."""
    shares, known = tag_counts(data.splits["train"])
    most = data.labels[int(shares.argmax())]
    test = data.splits["test"]
    return {
        "majority": Reference(f"Giving every word the tag {plain(most)!r}", _predicted(test, shares, {})),
        "frequent_tag": Reference("Giving each word its most frequent tag in train", _predicted(test, shares, known)),
    }


def tag_counts(train: TagSplit) -> tuple[Array, dict[str, Array]]:
    """Return the share of each tag [labels], and for each word how often it has each tag [labels]."""
    known: dict[str, Array] = {}
    for sentence, labels in zip(train.sentences, train.targets, strict=True):
        for word, label in zip(sentence.words, labels, strict=True):
            known.setdefault(word, np.zeros(len(train.labels)))[label] += 1
    total = np.sum(list(known.values()), axis=0)
    return total / total.sum(), known


def _predicted(split: TagSplit, shares: Array, known: dict[str, Array]) -> TagPredictions:
    """Return the tags of largest probability, given how often each word has each tag.

    To the counts of a word is added one word with the shares of all tags. So an unknown word has these shares, and of
    two tags that a word has equally often the one is taken that is more frequent.
    """
    probabilities: dict[str, Array] = {}

    def of(word: str) -> Array:
        if word not in probabilities:
            counts = known.get(word, np.zeros(len(shares))) + shares
            probabilities[word] = counts / counts.sum()
        return probabilities[word]

    gold = np.concatenate([np.asarray(labels) for labels in split.targets])
    rows = [of(word) for sentence in split.sentences for word in sentence.words]
    predicted = np.array([int(row.argmax()) for row in rows])
    losses = np.array([-np.log(max(row[label], 1e-12)) for row, label in zip(rows, gold, strict=True)])
    counts = np.array([len(sentence.words) for sentence in split.sentences])
    sentence = np.repeat(np.arange(len(split)), counts)
    return TagPredictions(
        split.sentences,
        split.labels,
        split.entities,
        gold,
        predicted,
        np.array([row[label] for row, label in zip(rows, predicted, strict=True)]),
        _numbers(counts),
        counts,
        np.bincount(sentence, losses, minlength=len(split)),
        counts.astype(float),
    )


def _numbers(counts: Sequence[int] | Array) -> Array:
    """Return 0 ... count - 1 for each count, one after the other."""
    return np.concatenate([np.arange(count) for count in counts])
