"""Multiple choice as a task: SWAG, RACE, CommonsenseQA, PIQA and the like.

A row is an example with all its choices: a model gets [rows, choices, tokens], gives each choice a score that depends
on no other choice, and the loss is the cross-entropy over the scores of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo.data.keys import Place
from hpo.tasks.dataset import SPLITS, Dataset, small_splits
from hpo.tasks.multiple_choice.baselines import references
from hpo.tasks.multiple_choice.breakdown import by_number, collapse, skewed
from hpo.tasks.multiple_choice.keys import ChoiceKeys
from hpo.tasks.multiple_choice.predictions import KIND, TASK, ChoicePredictions
from hpo.tasks.multiple_choice.split import ChoiceSplit, Example
from hpo.tasks.multiple_choice.usage import code
from hpo.tasks.rows import EncodedRows
from hpo.tasks.task import Reference, Smoothing, Task

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from transformers import PreTrainedTokenizerBase

    from hpo.tasks.task import Outputs, Tensors

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Aligned:
    """What rows are of.

    Attributes:
        examples: The examples.
        alike: [n] whether two choices have the same tokens, so that a model cannot tell them apart.
    """

    examples: Sequence[Example]
    alike: Array


class MultipleChoice(Task):
    """The right one of several choices."""

    name = TASK
    auto_model = "AutoModelForMultipleChoice"
    pipeline_tag = "multiple-choice"
    peft_type = None
    metric = "accuracy"
    keys = ChoiceKeys
    row = "choice"
    answer_keys = ("predicted", "predicted_choice", "probability", "probabilities")

    # ------------------------------------------------------------ reading

    def key_problems(self, keys: ChoiceKeys) -> Iterator[tuple[Place, str]]:
        """Yield a problem for each column with two uses: a label that is read as a text gives the answer away."""
        uses: dict[str, str] = {}
        for place, column in keys.columns():
            if column in uses and place != ("group",):
                yield place, f"is column {column!r}, as data.{uses[column]} is; name a column of its own"
            uses.setdefault(column, ".".join(place))
        if keys.group == keys.label:
            yield ("group",), f"is column {keys.group!r}, which is the label; name another column"

    def prepared(self, frames: dict[str, pd.DataFrame], keys: ChoiceKeys) -> list[str]:
        """Read the choices and labels of all rows."""
        from hpo.tasks.multiple_choice.reading import prepared

        return prepared(frames, keys)

    def _examples(self, table: pd.DataFrame) -> list[Example]:
        from hpo.tasks.multiple_choice.reading import EXAMPLE

        return list(table[EXAMPLE])

    def contents(self, table: pd.DataFrame, keys: ChoiceKeys) -> list[tuple[str, ...]]:
        """Return context, question and choices of each row."""
        return [(each.context, each.question, *each.choices) for each in self._examples(table)]

    def strata(self, table: pd.DataFrame, keys: ChoiceKeys) -> list[int]:
        """Return the numbers of the right choices."""
        return [each.label for each in self._examples(table)]

    def splits(self, frames: Mapping[str, pd.DataFrame], keys: ChoiceKeys) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Return no labels, and the splits."""
        return (), {
            name: ChoiceSplit(
                self._examples(frames[name]),
                keys.question is not None,
                members=self.groups(frames[name], keys),
                places=frames[name].index,
            )
            for name in SPLITS
        }

    def doubts(self, data: Dataset, metric: str) -> list[str]:
        """Return notes on small splits, and on choices that are not shuffled."""
        notes = small_splits(data, metric, self.example, share=True)
        for name, split in data.splits.items():
            if found := skewed(split.targets, split.choices):
                notes.append(
                    f"number {found[0]} (from 0) is the right choice in {found[1]:.0%} of the rows of {name}, as if "
                    f"the choices were not shuffled: to choose it always scores as much. A model does not see numbers"
                )
        return notes

    def facts(self, data: Dataset) -> dict[str, str]:
        """Return the number of choices."""
        return {"choices": f"{data.splits['train'].choices} a row"}

    def row_notes(self, rows: Mapping[str, EncodedRows], keys: ChoiceKeys) -> list[str]:
        """Return notes on choices that have the same tokens."""
        return [
            f"{count} of {len(each.alignment.alike)} rows of {name} have choices of the same tokens, which no model "
            "tells apart: raise max_length if they are cut, or look whether the tokenizer knows their characters"
            for name, each in rows.items()
            if (count := int(each.alignment.alike.sum()))
        ]

    def input_columns(self, keys: ChoiceKeys) -> tuple[str, ...]:
        """Return the columns of the texts."""
        return (*keys.texts(), *keys.of_choices())

    def unlabelled(self, rows: Sequence[Mapping[str, Any]], keys: ChoiceKeys) -> ChoiceSplit:
        """Return examples whose right choices are not known."""
        from hpo.tasks.multiple_choice.reading import unlabelled

        return ChoiceSplit(unlabelled(rows, keys), keys.question is not None)

    # ------------------------------------------------------------ training and scoring

    def marked(self, rows: EncodedRows, row: int, tokens: Sequence[str], labels: Sequence[str]) -> str:
        """Return the tokens of a choice, and whether it is the right one."""
        number, choice = divmod(row, rows.choices)
        right = int(rows.row_targets["labels"][number]) == choice
        text = rows.alignment.examples[number].choices[choice]
        return f"{' '.join(tokens)} -> choice {choice}, {text!r}, is {'RIGHT' if right else 'wrong'}"

    def encode(
        self, split: ChoiceSplit, keys: ChoiceKeys, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> EncodedRows:
        """Return a row for each example, each of its choices cut after `max_length` tokens, as in `run_swag.py`.

        The longer of context and choice is cut.
        """
        count, choices = len(split), split.choices
        encoded = tokenizer(
            [each.context for each in split.examples for _ in each.choices],
            [ending for each in split.examples for ending in each.endings()],
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids="token_type_ids" in tokenizer.model_input_names,
        )
        ids = [tuple(each) for each in encoded["input_ids"]]
        alike = [len(set(ids[start : start + choices])) < choices for start in range(0, len(ids), choices)]
        return EncodedRows(
            dict(encoded),
            {"labels": split.targets},
            units=np.ones(count),
            example=np.arange(count),
            alignment=Aligned(split.examples, np.array(alike)),
            choices=choices,
        )

    def loss(
        self, outputs: Outputs, targets: Tensors, smoothing: Smoothing, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the cross-entropy over the choices of each row [rows]."""
        return KIND.loss(outputs[0], targets["labels"], smoothing, None)

    def answers(self, outputs: Outputs, targets: Tensors) -> dict[str, torch.Tensor]:
        """Return the scores [rows, choices]."""
        return {"logits": outputs[0]}

    def predictions(
        self, split: ChoiceSplit, rows: EncodedRows, answers: Mapping[str, Array], keys: ChoiceKeys
    ) -> ChoicePredictions:
        """Return the scores together with the right choices."""
        return ChoicePredictions(split.targets, answers["logits"], [each.choices for each in split.examples])

    # ------------------------------------------------------------ results

    def collapse(self, predictions: ChoicePredictions) -> str:
        """Return the one number that a collapsed model chooses."""
        return collapse(predictions)

    def references(self, data: Dataset, metric: str, folder: Path) -> dict[str, Reference | None]:
        """Return the most frequent number, the longest choice, and the choice of the most shared words."""
        return references(data)

    def breakdown(self, predictions: ChoicePredictions, labels: Sequence[str]) -> dict[str, Any]:
        """Return accuracy by number of the right choice."""
        return by_number(predictions)

    def usage(self, settings: Mapping[str, Any]) -> str:
        """Return code that chooses with an exported model."""
        return code(settings)

    def predicted_rows(self, predictions: ChoicePredictions, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Return the chosen texts with their numbers, from 0, and the probabilities of all choices by number."""
        return [
            {
                "predicted": choices[number],
                "predicted_choice": int(number),
                "probability": probabilities[number],
                "probabilities": {str(i): probability for i, probability in enumerate(probabilities)},
            }
            for choices, number, probabilities in zip(
                predictions.choices, predictions.predicted, predictions.probabilities.tolist(), strict=True
            )
        ]
