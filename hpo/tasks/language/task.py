"""The base of the tasks whose models give out tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hpo.tasks.language import scores
from hpo.tasks.language.predictions import TextPredictions
from hpo.tasks.rows import EncodedRows
from hpo.tasks.task import Smoothing, Task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hpo.tasks.task import Outputs, Tensors

Array = np.ndarray[Any, Any]


class LanguageTask(Task):
    """A task whose models give out tokens. Its rows have the token target `labels`, and its units are tokens."""

    emits_tokens = True
    metric = "loss"
    answer_keys: ClassVar[tuple[str, ...]] = ("predicted",)

    def loss(
        self, outputs: Outputs, targets: Tensors, smoothing: Smoothing, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the loss of each row [rows]: the sum over the tokens that have a target."""
        return scores.losses(outputs[0], smoothing)

    def answers(self, outputs: Outputs, targets: Tensors) -> dict[str, torch.Tensor]:
        """Return sums over the tokens of each row."""
        return scores.sums(outputs[0])

    def predictions(self, split: Any, rows: EncodedRows, answers: Mapping[str, Array], keys: Any) -> TextPredictions:
        """Return the losses of the texts of a split; the model has generated nothing."""
        expected = list(self.expected(split))

        def by_example(values: Array) -> Array:
            return np.bincount(rows.example, weights=values, minlength=len(expected))

        return TextPredictions(
            self.name,
            by_example(answers["loss"]),
            by_example(rows.units),
            by_example(answers["right"]),
            np.array([len(text.encode()) for text in expected]),
            expected,
            list(self.sources(split)),
        )

    def collapse(self, predictions: Any) -> str:
        """Return what a collapsed model does."""
        return "writes the same text for every example"

    @abstractmethod
    def expected(self, split: Any) -> Sequence[str]:
        """Return the text that is expected for each example of a split."""

    @abstractmethod
    def sources(self, split: Any) -> Sequence[str]:
        """Return what the model is given for each example: a prompt, or a source text."""


class GeneratingTask(LanguageTask):
    """A task whose models generate text."""

    generates: ClassVar[bool] = True

    @abstractmethod
    def prompts(self, split: Any, keys: Any, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[list[int]]:
        """Return the token ids that a model continues, or that its encoder reads, for each example of a split."""

    def ends(self, rows: EncodedRows) -> tuple[int, ...]:
        """Return the tokens that end a text in these rows, besides those that the tokenizer and the model name."""
        return ()

    def begin(self, model: PreTrainedModel, keys: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        """Change a model's settings so that its texts begin as those of the training rows do."""

    def texts_without_model(self, split: Any) -> Mapping[str, Sequence[str]]:
        """Return name in words -> a text for each example, made without a model: baselines of generated text."""
        return {}
