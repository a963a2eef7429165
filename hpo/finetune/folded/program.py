"""One micro-step of K trials as a program: the same operations on the same memory, whoever the trials are.

every slot's micro-batch    gathered on the device; nothing where a slot waits for the others
one forward, one backward   losses are summed over slots: each gets the gradient that it would get alone
the slots whose batch is    step, each at rates of its own
whole

All that trials differ in is written into the program's tensors before: a segment's micro-batches in one copy, and
from there one after the other. Nothing in it waits for the device, so that it can be recorded and replayed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hpo.finetune.data.encoded import Tokens
from hpo.finetune.device import widened
from hpo.finetune.folded import packing
from hpo.finetune.folded.cuda_graph import Replay
from hpo.finetune.folded.model import fold, load_slot, slot_weights
from hpo.finetune.folded.optimizer import FoldedAdamW, rates_dtype
from hpo.finetune.models import dropout
from hpo.finetune.models.loading import first_position
from hpo.recipe.training_params import TrainingParams

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Shape:
    """What the study's tensors are like, for any number of slots.

    Attributes:
        rows: Of a micro-batch.
        length: Tokens of a row.
        line: Tokens of a micro-batch where they are packed; None where rows are padded.
    """

    rows: int
    length: int
    line: int | None

    def parts(self, batch: Array, lengths: Array) -> list[Array]:
        """Cut a batch of rows into micro-batches, in order."""
        parts: list[list[int]] = [[]]
        left = self.line or 0
        for row in batch:
            if len(parts[-1]) == self.rows or (self.line and lengths[row] > left):
                parts.append([])
                left = self.line or 0
            parts[-1].append(row)
            left -= lengths[row]
        return [np.array(part) for part in parts]


@dataclass(frozen=True)
class MicroBatch:
    """What one slot does in one micro-step.

    Attributes:
        rows: Row numbers.
        batch: Rows of the whole batch, which the losses are divided by.
        key: Of its dropout masks.
        rates: Learning rates with which the batch's last micro-batch steps; None for those before it.
    """

    rows: Array
    batch: int
    key: int
    rates: Sequence[float] | None


class Program:
    """K trials, and the micro-step that trains them.

    Args:
        template: The model of one trial.
        slots: K.
        trained: Names of the parameters that are trained.
        head: Names of those that are not pretrained.
        tokens: The train split.
        shape: Of a micro-batch.
        loss: Of logits [n, ...], targets [n], label smoothing [n] and class weights [n, outputs] or None: [n].
        class_weights: Setting of `class_weights` -> weights [outputs]; nothing for a task without classes.
        context: What the model runs within.
        by_depth: Whether a trial may have layer-wise decay.

    Attributes:
        model: The folded model.
        optimizer: What steps it.
        losses: [K], summed since `write`.
    """

    def __init__(
        self,
        template: PreTrainedModel,
        slots: int,
        trained: Iterable[str],
        head: frozenset[str],
        tokens: Tokens,
        shape: Shape,
        loss: Callable[..., torch.Tensor],
        class_weights: Mapping[str, torch.Tensor],
        context: Callable[[torch.Tensor], AbstractContextManager[Any]],
        by_depth: bool = True,
    ) -> None:
        self.model = fold(template, slots)
        if shape.line is not None:
            packing.install(self.model, first_position(template.config))
        self.optimizer = FoldedAdamW(self.model, trained, head, by_depth)
        self.shape, self._tokens, self._loss, self._context = shape, tokens, loss, context
        self._device, self._dtype = template.device, rates_dtype(template.device)
        self.losses = torch.zeros(slots, device=self._device)
        self._settings = torch.ones(slots, 3, dtype=self._dtype, device=self._device)
        self._weights_by_setting = class_weights
        weights = class_weights.get("none")
        self._class_weights = None if weights is None else weights.repeat(slots, 1)  # [K, outputs]
        self._plans = self._on_device(*self._blank(1))
        self._now = [plan[0].clone() for plan in self._plans]
        self._replays: dict[tuple[bool, ...], Replay] = {}  # by where anything is dropped: elsewhere are no operations

    def load(self, slot: int, trial: PreTrainedModel, params: TrainingParams) -> dict[str, torch.Tensor]:
        """Put a trial into a slot, and return its weights; views."""
        load_slot(self.model, slot, trial.state_dict())
        self.optimizer.clear(slot)
        settings = params.label_smoothing, params.weight_decay, params.max_grad_norm
        self._settings[slot] = torch.tensor(settings, dtype=self._dtype)
        if self._class_weights is not None:
            self._class_weights[slot] = self._weights_by_setting[params.class_weights]
        dropout.set_rates(self.model, slot, len(self.losses), trial)
        return slot_weights(self.model, slot)

    # ------------------------------------------------------------ a segment

    def _blank(self, steps: int) -> tuple[Array, Array]:
        """Return what slots do that do nothing: rows and key [steps, K, b + 1]; shares, whether to step, and rates."""
        slots = len(self.losses)
        whole = np.zeros((steps, slots, self.shape.rows + 1), dtype=np.int64)
        return whole, np.zeros((steps, slots, self.shape.rows + 1 + len(self.optimizer.depths)))

    def _on_device(self, whole: Array, numbers: Array) -> list[torch.Tensor]:
        plans = torch.from_numpy(whole), torch.from_numpy(numbers).to(self._dtype)
        return [plan.to(self._device, non_blocking=True) for plan in plans]

    def write(self, plans: Mapping[int, Sequence[MicroBatch]]) -> int:
        """Write down what slots do in a segment, and return its micro-steps.

        Args:
            plans: Slot -> its micro-batches; slots may have different numbers of them.
        """
        steps = max(map(len, plans.values()), default=0)
        whole, numbers = self._blank(steps)
        rows = self.shape.rows
        for slot, plan in plans.items():
            for step, micro in enumerate(plan):
                whole[step, slot, : len(micro.rows)] = micro.rows
                whole[step, slot, rows] = micro.key
                numbers[step, slot, : len(micro.rows)] = 1 / micro.batch  # 0 where a row is there to fill up
                if micro.rates is not None:
                    numbers[step, slot, rows:] = 1.0, *micro.rates
        self._plans = self._on_device(whole, numbers)
        self._replay = self._replays.setdefault(dropout.places(self.model), Replay(self._micro_step, self._device))
        self.losses.zero_()
        self.model.train()
        return steps

    def step(self, number: int) -> None:
        """Do a micro-step of the segment."""
        for now, plan in zip(self._now, self._plans, strict=True):
            now.copy_(plan[number])
        self._replay()

    def _micro_step(self) -> None:
        whole, numbers = self._now
        rows = self.shape.rows
        shares, stepping, rates = numbers[:, :rows], numbers[:, rows].float(), numbers[:, rows + 1 :]
        smoothing, weight_decay, max_norm = self._settings.unbind(1)
        index = whole[:, :rows].reshape(-1)
        inputs, targets = self._tokens.gather(index, self.shape.length)
        with self._context(whole[:, rows]), packing.packed(self._packing(index, shares)):
            logits = self.model(**inputs).logits
        logits = widened(logits)
        smoothing = smoothing.to(logits.dtype).repeat_interleave(rows)
        weights = None if self._class_weights is None else self._class_weights.repeat_interleave(rows, dim=0)
        losses = self._loss(logits, targets, smoothing, weights).view(-1, rows)
        weighted = losses * shares.to(losses.dtype)
        with warnings.catch_warnings():  # of gradients that lie as the weights do
            warnings.filterwarnings("ignore", message="grad and param do not obey")
            weighted.sum().backward()  # type: ignore[no-untyped-call]
        self.losses += weighted.detach().sum(dim=1)
        self.optimizer.step(stepping, rates, weight_decay, max_norm.float())

    def _packing(self, index: torch.Tensor, shares: torch.Tensor) -> packing.Packing | None:
        if self.shape.line is None:
            return None
        lengths = torch.where(shares > 0, self._tokens.counts[index].view(shares.shape), 0)
        return packing.Packing(lengths, self.shape.line, self.shape.length)
