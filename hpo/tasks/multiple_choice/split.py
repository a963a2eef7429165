"""The examples of one split: a text, its choices, and the number of the right one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hpo.tasks.dataset import Split

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Example:
    """A text and its choices.

    Attributes:
        context: The text that all choices go on from.
        question: What stands between it and each choice; it may be empty.
        choices: The choices.
        label: Number of the right one, from 0; 0 where it is not known.
    """

    context: str
    question: str
    choices: tuple[str, ...]
    label: int = 0

    def endings(self) -> list[str]:
        """Return each choice with the question before it: the second text that a model reads."""
        return [f"{self.question} {choice}".strip() for choice in self.choices]


@dataclass(frozen=True)
class ChoiceSplit(Split):
    """Examples that have the same number of choices.

    Attributes:
        examples: n examples.
        asks: Whether rows have a column of questions.
    """

    examples: list[Example]
    asks: bool

    @cached_property
    def targets(self) -> Array:
        """[n] int64: numbers of the right choices."""
        return np.array([example.label for example in self.examples], dtype=np.int64)

    @property
    def choices(self) -> int:
        """Choices of an example."""
        return len(self.examples[0].choices)

    @property
    def contents(self) -> list[tuple[str, ...]]:
        """Context, question and choices of each example."""
        return [(each.context, each.question, *each.choices) for each in self.examples]

    def hashed(self, name: str) -> Iterator[bytes]:
        """Yield texts and labels."""
        for each in self.examples:
            yield json.dumps([name, each.context, each.question, each.choices, each.label]).encode()

    def as_rows(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Return the texts, and the right choice as `label`."""
        return [
            {
                "context": each.context,
                **({"question": each.question} if self.asks else {}),
                "choices": list(each.choices),
                "label": each.choices[each.label],
            }
            for each in self.examples
        ]
