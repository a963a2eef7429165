"""Scores of tagged sentences: entity precision, recall and F1 by seqeval's rules, and token accuracy.

Each score is a function of counts that add up over sentences: the score of some sentences is `f1(counts.sum(axis=0))`.
So a bootstrap over sentences is one product of matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from hpo.tasks.token_classification.schemes import Entity, Scheme, entities, strict_entities

Array = np.ndarray[Any, Any]
Tags = Sequence[Sequence[str]]  # the tags of each sentence


def entity_counts(gold: Tags, predicted: Tags, types: Sequence[str], scheme: Scheme | None = None) -> Array:
    """Return [sentences, types, 3]: the entities that are right, predicted and actual, of each type.

    An entity is right if its type and both its ends are. The sum over types gives the counts of all entities.

    Args:
        gold: The tags of each sentence.
        predicted: Those that a model gives to the same words.
        types: All types of the tags; see `schemes.types_of`.
        scheme: The scheme of seqeval's strict mode; None is its default mode.
    """
    index = {name: i for i, name in enumerate(types)}
    counts = np.zeros((len(gold), len(types), 3), dtype=np.int64)
    for row, (own, given) in enumerate(zip(gold, predicted, strict=True)):
        _refuse_lengths(row, own, given)
        actual, found = _entities(own, scheme), _entities(given, scheme)
        for column, each in enumerate((actual & found, found, actual)):
            for entity in each:
                counts[row, index[entity.type], column] += 1
    return counts


def token_counts(gold: Tags, predicted: Tags) -> Array:
    """Return [sentences, 2]: the words whose tag is right, and all words."""
    counts = np.zeros((len(gold), 2), dtype=np.int64)
    for row, (own, given) in enumerate(zip(gold, predicted, strict=True)):
        _refuse_lengths(row, own, given)
        counts[row] = sum(map(str.__eq__, own, given)), len(own)
    return counts


def _entities(tags: Sequence[str], scheme: Scheme | None) -> set[Entity]:
    return set(entities(tags) if scheme is None else strict_entities(tags, scheme))


def _refuse_lengths(row: int, gold: Sequence[str], predicted: Sequence[str]) -> None:
    if len(gold) != len(predicted):
        raise ValueError(f"sentence {row} has {len(gold)} tags, and {len(predicted)} predicted ones")


# ---------------------------------------------------------------- from counts to scores


def precision(counts: Array) -> Array:
    """Return the share of the predicted entities that are right, [...] from counts [..., 3]; 0 if there are none."""
    return _ratio(counts[..., 0], counts[..., 1])


def recall(counts: Array) -> Array:
    """Return the share of the actual entities that are found, [...] from counts [..., 3]; 0 if there are none."""
    return _ratio(counts[..., 0], counts[..., 2])


def f1(counts: Array) -> Array:
    """Return the harmonic mean of precision and recall, [...] from counts [..., 3]; 0 if both are 0."""
    return _ratio(2 * counts[..., 0], counts[..., 1] + counts[..., 2])


def accuracy(counts: Array) -> Array:
    """Return the share of the words whose tag is right, [...] from counts [..., 2]; 0 if there are no words."""
    return _ratio(counts[..., 0], counts[..., 1])


def _ratio(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.zeros(np.shape(above)), where=np.asarray(below) > 0)


ENTITY_SCORES: dict[str, Callable[[Array], Array]] = {"precision": precision, "recall": recall, "f1": f1}


def collapsed(gold: Tags, predicted: Tags) -> str | None:
    """Return the tag that a model gives to every word although the gold tags are not all this one; else None.

    For named entities it is nearly always `O`.
    """
    given = set(chain.from_iterable(predicted))
    if len(given) != 1 or set(chain.from_iterable(gold)) <= given:
        return None
    return given.pop()
