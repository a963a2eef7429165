"""One micro-step of K trials as a program: the same operations on the same memory, whatever the trials.

1. Gather every slot's micro-batch on the device; a slot that waits for the others has none.
2. One forward and one backward pass. Losses are summed over slots, so each slot has the gradient that it has alone.
3. The slots whose batch is complete step, each with its own learning rates.

All values in which trials differ are written into the program's tensors before: the micro-batches of a segment in one
copy, from which each step takes its own. Nothing in the program waits for the device, so it can be recorded and
replayed.
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
from hpo.finetune.folded import packing
from hpo.finetune.folded.cuda_graph import Replay
from hpo.finetune.folded.model import fold, load_slot, slot_weights
from hpo.finetune.folded.optimizer import FoldedAdamW, rates_dtype
from hpo.finetune.models import dropout, token_head
from hpo.finetune.models.loading import first_position
from hpo.recipe.training_params import TrainingParams
from hpo.tasks.task import Task

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Shape:
    """The shape of a slot's micro-batches, the same for a whole study.

    Attributes:
        rows: Rows of a micro-batch.
        length: Tokens of a padded row.
        line: Tokens of a micro-batch if they are packed; None if rows are padded.
        decoder_length: Tokens of a padded row of the decoder; 0 if the model has one input only.
    """

    rows: int
    length: int
    line: int | None
    decoder_length: int = 0

    def parts(self, batch: Array, totals: Array) -> list[Array]:
        """Cut a batch of rows into micro-batches, in order; `totals` are the tokens of all rows of the split."""
        parts: list[list[int]] = [[]]
        left = self.line or 0
        for row in batch:
            if len(parts[-1]) == self.rows or (self.line and totals[row] > left):
                parts.append([])
                left = self.line or 0
            parts[-1].append(row)
            left -= totals[row]
        return [np.array(part) for part in parts]


@dataclass(frozen=True)
class MicroBatch:
    """The work of one slot in one micro-step.

    Attributes:
        rows: Row numbers.
        batch: Number of rows of the whole batch.
        units: Units of the whole batch, by which the losses are divided.
        key: Key of its dropout masks.
        rates: Learning rates of the step after the batch's last micro-batch; None for earlier micro-batches.
    """

    rows: Array
    batch: int
    units: float
    key: int
    rates: Sequence[float] | None


class Program:
    """K trials, and the micro-step that trains them.

    Args:
        template: The model of one trial.
        slots: K.
        trained: Names of the parameters that are trained.
        head: Names of the parameters that are not pretrained.
        tokens: The train split.
        shape: The shape of a micro-batch.
        task: The task that the trials are trained for.
        class_weights: Setting of `class_weights` -> weights [outputs]; nothing for a task without classes.
        context: Takes dropout keys [K]; the model runs within the context that it returns.
        by_depth: Whether a trial may have layer-wise decay.

    Attributes:
        model: The folded model.
        optimizer: Its optimiser.
        shape: As given.
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
        task: Task,
        class_weights: Mapping[str, torch.Tensor],
        context: Callable[[torch.Tensor], AbstractContextManager[Any]],
        by_depth: bool = True,
    ) -> None:
        self.model = fold(template, slots)
        if shape.line is not None:
            packing.install(self.model, first_position(template.config))
        self.optimizer = FoldedAdamW(self.model, trained, head, by_depth)
        self.shape, self._tokens, self._task, self._context = shape, tokens, task, context
        self._device, self._dtype = template.device, rates_dtype(template.device)
        self.losses = torch.zeros(slots, device=self._device)
        self._settings = torch.ones(slots, 3, dtype=self._dtype, device=self._device)
        self._weights_by_setting = class_weights
        weights = class_weights.get("none")
        self._class_weights = None if weights is None else weights.repeat(slots, 1)  # [K, outputs]
        self._plans = self._on_device(*self._blank(1))
        self._now = [plan[0].clone() for plan in self._plans]
        self._replays: dict[tuple[bool, ...], Replay] = {}  # by `dropout.places`: the operations depend on it

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
        """Return plans of idle slots.

        Returns:
            Integers [steps, K, b + 1], row numbers and key; and numbers [steps, K, b + 1 + depths], weights of the
            rows' losses, whether to step, and learning rates.
        """
        slots = len(self.losses)
        integers = np.zeros((steps, slots, self.shape.rows + 1), dtype=np.int64)
        return integers, np.zeros((steps, slots, self.shape.rows + 1 + len(self.optimizer.depths)))

    def _on_device(self, integers: Array, numbers: Array) -> list[torch.Tensor]:
        plans = torch.from_numpy(integers), torch.from_numpy(numbers).to(self._dtype)
        return [plan.to(self._device, non_blocking=True) for plan in plans]

    def write(self, plans: Mapping[int, Sequence[MicroBatch]]) -> int:
        """Copy the plans of a segment to the device, and return its number of micro-steps.

        Args:
            plans: Slot -> its micro-batches; their numbers may differ.
        """
        steps = max(map(len, plans.values()), default=0)
        integers, numbers = self._blank(steps)
        rows = self.shape.rows
        for slot, plan in plans.items():
            for step, micro in enumerate(plan):
                integers[step, slot, : len(micro.rows)] = micro.rows
                integers[step, slot, rows] = micro.key
                numbers[step, slot, : len(micro.rows)] = 1 / micro.units  # 0 for rows that fill a micro-batch up
                if micro.rates is not None:
                    numbers[step, slot, rows:] = 1.0, *micro.rates
        self._plans = self._on_device(integers, numbers)
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
        integers, numbers = self._now
        rows = self.shape.rows
        shares, stepping, rates = numbers[:, :rows], numbers[:, rows].float(), numbers[:, rows + 1 :]
        smoothing, weight_decay, max_norm = self._settings.unbind(1)
        index = integers[:, :rows].reshape(-1)
        keys = integers[:, rows]
        masks = dropout.seed(keys).repeat_interleave(rows) if self._tokens.masking else None
        inputs, targets = self._tokens.gather(index, self.shape.length, self.shape.decoder_length, masks)
        with self._context(keys), packing.packed(self._packing(index, shares)):
            outputs = token_head.outputs(self._task, self.model, inputs, targets)
        smoothing = smoothing.to(outputs[0].dtype).repeat_interleave(rows)
        weights = None if self._class_weights is None else self._class_weights.repeat_interleave(rows, dim=0)
        losses = self._task.loss(outputs, targets, smoothing, weights).view(-1, rows)
        weighted = losses * shares.to(losses.dtype)
        with warnings.catch_warnings():  # gradients are views with the layout of the weights, on purpose
            warnings.filterwarnings("ignore", message="grad and param do not obey")
            weighted.sum().backward()  # type: ignore[no-untyped-call]
        self.losses += weighted.detach().sum(dim=1)
        self.optimizer.step(stepping, rates, weight_decay, max_norm.float())

    def _packing(self, index: torch.Tensor, shares: torch.Tensor) -> packing.Packing | None:
        if self.shape.line is None:
            return None
        counts = self._tokens.counts[index].view(*shares.shape, -1)  # [K, rows, choices]
        lengths = torch.where(shares[..., None] > 0, counts, 0).flatten(1)
        return packing.Packing(lengths, self.shape.line, self.shape.length)
