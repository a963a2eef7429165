"""Cheap rules that a fine-tuned model should beat: they look at the number of a choice, its length, or its words.

Endings that a program or a crowd writes often differ from right ones in such things (Zellers et al., 2018, SWAG).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from hpo.tasks.dataset import Dataset
from hpo.tasks.multiple_choice.predictions import ChoicePredictions
from hpo.tasks.multiple_choice.split import ChoiceSplit, Example
from hpo.tasks.task import Reference

Array = np.ndarray[Any, Any]
_WORD = re.compile(r"\w+")


def references(data: Dataset) -> dict[str, Reference | None]:
    """Return the predictions of each rule for the test split."""
    train, test = data.splits["train"], data.splits["test"]
    shares = np.bincount(train.targets, minlength=train.choices) / len(train)
    often = int(shares.argmax())
    always = np.tile(np.log(np.maximum(shares, 1e-12)), (len(test), 1))
    return {
        "majority": Reference(f"Choosing number {often} always", _predictions(test, always)),
        "longest": Reference("Choosing the longest choice", _by_rule(train, test, _length)),
        "overlap": Reference(
            "Choosing the choice of whose words most are in the texts before it", _by_rule(train, test, _overlap)
        ),
    }


def _predictions(split: ChoiceSplit, logits: Array) -> ChoicePredictions:
    return ChoicePredictions(split.targets, logits, [each.choices for each in split.examples])


def _length(example: Example, choice: str) -> float:
    return len(choice)


def _overlap(example: Example, choice: str) -> float:
    """Return the share of a choice's words that are in the texts before it."""
    given = set(_WORD.findall(f"{example.context} {example.question}".casefold()))
    words = _WORD.findall(choice.casefold())
    return sum(word in given for word in words) / max(1, len(words))


def _by_rule(train: ChoiceSplit, test: ChoiceSplit, rule: Callable[[Example, str], float]) -> ChoicePredictions:
    """Return predictions of the choice for which a rule says most; of equal ones, the first.

    Its probability is how often the rule is right in train. It is above chance, so that it is the one that is chosen.
    """
    count = train.choices
    share = float((_chosen(train, rule) == train.targets).mean())
    right = min(max(share, 1 / count + 1e-6), 1 - 0.5 / len(train))
    logits = np.full((len(test), count), np.log((1 - right) / (count - 1)))
    logits[np.arange(len(test)), _chosen(test, rule)] = np.log(right)
    return _predictions(test, logits)


def _chosen(split: ChoiceSplit, rule: Callable[[Example, str], float]) -> Array:
    """Return [n] the number of the choice for which a rule says most."""
    return np.array([np.argmax([rule(each, choice) for choice in each.choices]) for each in split.examples])
