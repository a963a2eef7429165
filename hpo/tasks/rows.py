"""Rows as a task encodes them for a model, before they are tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

IGNORED = -100
"""The target of a token that has none, as in transformers."""


@dataclass(frozen=True)
class Masking:
    """What stands in the place of masked tokens.

    Attributes:
        token: Id of the mask token.
        vocabulary: Number of the ids, from 0, of which another token is drawn.
    """

    token: int
    vocabulary: int


@dataclass(frozen=True)
class EncodedRows:
    """A split as rows for a model.

    Attributes:
        inputs: Input of the model -> its token values, a sequence for each row; `input_ids` among them. All inputs and
            token targets of a row have the same length; where there are decoder inputs, token targets have theirs.
        row_targets: Name -> [rows, ...], what is expected of a row.
        token_targets: Name -> the target of each token, a sequence for each row; `IGNORED` for a token without one.
        units: [rows] units of each row.
        example: [rows] the example that each row is of, in ascending order.
        alignment: What the task needs to turn answers about tokens into predictions.
        decoder_inputs: Input of the decoder -> its token values, a sequence for each row; `decoder_input_ids`, where
            the model is an encoder-decoder model whose decoder gets tokens of its own.
        choices: Sequences of a row. If there are several, `inputs` has those of the first row, then those of the
            second, and the model gets [rows, choices, tokens].
        masking: If given, tokens are masked anew in every training pass: of those that have a target `labels` as many
            as the row target `masked` says. See `hpo/finetune/data/masking.py`.
    """

    inputs: Mapping[str, Sequence[Sequence[int]]]
    row_targets: Mapping[str, Array] = field(default_factory=dict)
    token_targets: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)
    units: Array = field(default_factory=lambda: np.empty(0))
    example: Array = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    alignment: Any = None
    decoder_inputs: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)
    choices: int = 1
    masking: Masking | None = None

    def without_tokens(self, shown: int) -> EncodedRows:
        """Return the same without inputs and token targets, those of the first `shown` rows excepted."""
        most = shown * self.choices
        first: dict[str, Any] = {
            kind: {name: list(rows[:most]) for name, rows in getattr(self, kind).items()}
            for kind in ("inputs", "token_targets", "decoder_inputs")
        }
        return replace(self, **first)
