"""A model's predictions of the texts of a split: losses of their tokens, and what the model generates, if it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpo.tasks.language import text_metrics

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class TextPredictions:
    """Predictions for n texts; see `hpo.tasks.task.Predictions`.

    Attributes:
        task: Name in `TASKS`.
        losses: [n] cross-entropy of the tokens of each text that have a target, summed, in nats.
        units: [n] tokens that have a target.
        right: [n] tokens whose target is the most probable token.
        bytes: [n] length of the expected text in UTF-8.
        expected: The expected texts.
        sources: What the model is given: the prompt, or the source text.
        generated: The texts that the model generates; None if it has not.
    """

    task: str
    losses: Array
    units: Array
    right: Array
    bytes: Array
    expected: Sequence[str]
    sources: Sequence[str]
    generated: Sequence[str] | None = None

    def __len__(self) -> int:
        """Return n."""
        return len(self.expected)

    def take(self, examples: Array) -> TextPredictions:
        """Return the predictions for some texts."""
        generated = self.generated
        return replace(
            self,
            losses=self.losses[examples],
            units=self.units[examples],
            right=self.right[examples],
            bytes=self.bytes[examples],
            expected=[self.expected[i] for i in examples],
            sources=[self.sources[i] for i in examples],
            generated=None if generated is None else [generated[i] for i in examples],
        )

    @property
    def finite(self) -> bool:
        """Whether all losses are finite."""
        return bool(np.isfinite(self.losses).all())

    @property
    def varied(self) -> bool:
        """Whether different texts are expected."""
        return len(set(self.expected)) > 1

    @property
    def collapsed(self) -> bool:
        """Whether the model has generated the same text for every example, although different ones are expected."""
        return self.generated is not None and len(set(self.generated)) == 1 and self.varied

    @property
    def token_counts(self) -> Array:
        """[n, 2]: right tokens, and all that have a target."""
        return np.stack([self.right, self.units], axis=1)

    @property
    def exact_matches(self) -> Array:
        """[n, 2]: whether the generated text is the expected one, and 1."""
        return text_metrics.exact_matches(self)
