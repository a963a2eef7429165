"""Builds the programs of a study: the one that trains the trials in its slots, and those that are measured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from hpo.finetune.adaptation import Adaptation
from hpo.finetune.data.encoded import Tokens
from hpo.finetune.folded.program import Program, Shape
from hpo.finetune.models import dropout
from hpo.finetune.setup import Setup

# Packing costs copies in memory. It is used where the line of tokens is shorter than this share of the padded rows.
WORTH_PACKING = 0.9


class ProgramBuilder:
    """Builds programs for the trials of a study.

    Args:
        setup: What trials share, made for folding.
        adaptation: What of the model they train.
        by_depth: Whether a trial may have layer-wise decay; if so, each step is one operation for each depth and slot.

    Attributes:
        setup: As given.
        adaptation: As given.
        trained: Names of the parameters that get a gradient.
    """

    def __init__(self, setup: Setup, adaptation: Adaptation, by_depth: bool) -> None:
        self.setup, self.adaptation, self._by_depth = setup, adaptation, by_depth
        self._packs = adaptation.difference(setup.model, packed=True) is None
        self.trained = self._with_gradient()

    def _with_gradient(self) -> list[str]:
        """Return the names of the parameters that get a gradient; AdamW leaves the others as they are."""
        model = self.setup.model
        tokens = self.setup.measurable(model)
        inputs, targets = tokens.batch(np.arange(min(2, len(tokens.lengths))))
        with self.setup.autocast():
            outputs = self.setup.outputs(model.train(), inputs, targets)
        torch.stack([output.sum() for output in outputs]).sum().backward()  # type: ignore[no-untyped-call]
        names = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
        model.zero_grad()
        return names

    def shape(self, rows: int) -> Shape:
        """Return the shape of micro-batches of so many rows; a line of packed tokens is long enough for nearly all."""
        tokens = self.setup.tokens["train"]
        longest, totals = int(tokens.lengths.max()), tokens.totals
        if tokens.decoder is not None:  # a packing has one length for each row, and such rows have two
            return Shape(rows, longest, None, int(tokens.decoder.lengths.max()))
        usual = rows * totals.mean() + 2 * math.sqrt(rows) * totals.std()
        line = max(int(totals.max()), 8 * math.ceil(usual / 8))
        worth = line < WORTH_PACKING * rows * tokens.choices * longest
        return Shape(rows, longest, line if self._packs and worth else None)

    def program(self, slots: int, tokens: Tokens, shape: Shape) -> Program:
        """Return a program with a number of slots, all empty, that trains on these rows."""
        setup = self.setup
        return Program(
            setup.model,
            slots,
            self.trained,
            setup.head,
            tokens,
            shape,
            setup.task,
            setup.class_weights,
            self._context,
            self._by_depth,
        )

    @contextmanager
    def _context(self, keys: torch.Tensor) -> Iterator[None]:
        with self.setup.intercepted(), dropout.drawing_from(keys), self.setup.autocast():
            yield
