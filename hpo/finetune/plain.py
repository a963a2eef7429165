"""The plain engine: a model for each slot, trained one after the other, or on a CPU side by side in threads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel

from hpo.core.errors import OutOfMemoryError
from hpo.core.interrupts import StopRequest
from hpo.core.seeds import derived_seed
from hpo.core.trainer import Evaluation, TrialSpec
from hpo.finetune.adaptation import Adaptation
from hpo.finetune.data.batches import WINDOW
from hpo.finetune.device import memory_error, out_of_memory
from hpo.finetune.engine import Trained
from hpo.finetune.memory import Memory, of_pass, size_of_model
from hpo.finetune.models import dropout, frozen
from hpo.finetune.setup import Setup
from hpo.finetune.slot import Slot
from hpo.finetune.trial_model import counted, measured_seconds, predict_whole
from hpo.finetune.trial_start import begin
from hpo.tasks.task import Predictions

Array = np.ndarray[Any, Any]
Result = TypeVar("Result")


class PlainEngine:
    """Holds a model for each occupied slot; see `Engine`.

    Args:
        setup: What trials share.
        adaptation: What of the model they train.
        largest_batch: The largest batch size that a trial may have.

    Attributes:
        window: As in `epoch_batches`; rows of similar length share a batch.
        micro_batch: Rows of one pass; halved after a lack of memory.
    """

    window = WINDOW
    notes: Sequence[str] = ()

    def __init__(self, setup: Setup, adaptation: Adaptation, largest_batch: int) -> None:
        self.setup, self.adaptation, self._largest_batch = setup, adaptation, largest_batch
        slots = setup.config.slots
        self.slots = 1 if slots == "auto" else slots
        self.micro_batch = setup.config.micro_batch
        self.threads = torch.get_num_threads()
        if setup.own_masks:
            self.threads = 1 if slots == "auto" else max(1, self.threads // self.slots)
        self.occupied: dict[int, Slot] = {}
        self.stop_request = StopRequest()
        self._spare = [setup.model]

    @property
    def facts(self) -> Mapping[str, Any]:
        """Nothing: the results do not depend on this engine."""
        return {}

    @property
    def _side_by_side(self) -> bool:
        return self.slots > 1 and self.setup.own_masks

    def load(self, slot: int, trial: TrialSpec) -> None:
        """Put a trial into an empty slot: at its start, or where its checkpoint left it."""
        if not self._spare:
            self._spare.append(copy.deepcopy(next(iter(self.occupied.values())).model))
        self.occupied[slot] = begin(self.setup, self.adaptation, self._spare[-1], trial, self.window)
        self._spare.pop()  # only after the start has succeeded: if it fails, the next trial uses this model

    def unload(self, slot: int) -> None:
        """Empty a slot; its model is used for a later trial."""
        if slot in self.occupied:
            self._spare.append(self.occupied.pop(slot).model)

    # ------------------------------------------------------------ training

    def train(self) -> Mapping[int, Trained]:
        """Train every occupied slot to its boundary."""
        return self._each(self._trained, self.occupied)

    def _each(self, compute: Callable[[Slot], Result], slots: Mapping[int, Slot]) -> dict[int, Result]:
        """Return what is computed of each slot: one after the other, or side by side in threads."""
        if not self._side_by_side:
            return {number: compute(slot) for number, slot in slots.items()}
        with ThreadPoolExecutor(len(slots), initializer=torch.set_num_threads, initargs=(self.threads,)) as pool:
            futures = {number: pool.submit(compute, slot) for number, slot in slots.items()}
            try:
                return {number: future.result() for number, future in futures.items()}
            except InterruptedError:  # a stop is due, for all of them
                raise
            except BaseException:
                self.stop_request.set()  # the pool waits for its threads, which end after their present step
                raise

    def make_room(self, outcomes: dict[int, Evaluation | Exception]) -> dict[int, Evaluation | Exception]:
        """Return the outcomes: a lack of memory in one slot does not concern the others."""
        return outcomes

    def _trained(self, slot: Slot) -> Trained:
        try:
            return self._segment(slot)
        except Exception as error:
            return memory_error(error)

    def _segment(self, slot: Slot) -> Predictions | None:
        """Train a slot to its boundary and return its predictions on the validation split; None if stopped before."""
        slot.model.train()
        loss = torch.zeros((), device=self.setup.device)
        while slot.seen < slot.boundary and not self.stop_request.is_set():
            loss += self._step(slot, next(slot.batches))
        slot.loss += loss.item()  # the only time in a segment that the host waits for the device
        return None if slot.seen < slot.boundary else self.setup.predict(slot.model, "validation")

    def _step(self, slot: Slot, rows: Array) -> torch.Tensor:
        """Take one optimiser step and return the batch's mean loss, on the device.

        A lack of memory halves the micro-batch, for this step and all later steps.

        Raises:
            OutOfMemoryError: One example does not fit in memory.
        """
        assert slot.optimizer is not None
        while True:
            seed = derived_seed(slot.trial.seed, "dropout", slot.step)
            if not self._side_by_side:
                torch.manual_seed(seed)
            try:
                loss = self._accumulate(slot, rows, seed)
                break
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                slot.optimizer.zero_grad()
                if self.micro_batch == 1:
                    raise OutOfMemoryError("one example at a time does not fit in memory") from None
                self.micro_batch = min(self.micro_batch, len(rows)) // 2 or 1
        slot.update(len(rows))
        slot.optimizer.zero_grad()
        return loss

    def _accumulate(self, slot: Slot, rows: Array, seed: int) -> torch.Tensor:
        """Add up the gradients of a batch's micro-batches; each loss is divided by the units of the whole batch."""
        tokens, total = self.setup.split_for(slot.model, "train"), torch.zeros((), device=self.setup.device)
        units = max(1.0, tokens.units[rows].sum())
        for number, start in enumerate(range(0, len(rows), self.micro_batch)):
            inputs, targets = tokens.batch(rows[start : start + self.micro_batch], key=seed)
            with self.setup.masked(dropout.key(seed, number)), self.setup.autocast():
                outputs = self.setup.outputs(slot.model, inputs, targets)
            loss = self.setup.losses(slot.params, outputs, targets).sum() / units
            loss.backward()
            total += loss.detach()
        return total

    # ------------------------------------------------------------ scoring and measuring

    def generate(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> Mapping[int, list[str]]:
        """Return what the models in some slots generate for prompts."""
        held = {number: self.occupied[number] for number in slots}
        return self._each(lambda slot: self.setup.generated(slot.model, prompts, stop=self.stop_request)[0], held)

    def whole(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the weights."""
        return dict(weights)

    def predictions_of(self, model: PreTrainedModel, split: str) -> Predictions:
        """Return the predictions for a split of a whole model."""
        return predict_whole(self.setup, model, split)

    def fastest_slots(self, most: int) -> int:
        """Return the number of slots that uses all threads of a CPU; one where trials do not train side by side."""
        return max(1, min(torch.get_num_threads() // self.threads, most)) if self.setup.own_masks else 1

    def seconds_per_example(self) -> float:
        """Measure forward and backward passes over a few batches of the train split."""
        return measured_seconds(self.setup, self._spare[-1])

    def memory(self, free: int | None) -> Memory:
        """Estimate the memory that the trials in all slots take, with the longest rows and the fewest frozen layers."""
        setup, model = self.setup, self._spare[-1]
        rows = min(self.micro_batch, self._largest_batch, setup.train_rows)
        with frozen.freezing(model, setup.frozen_layers[0]), _without_gradients(model):
            self._pass(model, 1)
            gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
            model.zero_grad()
            passed = of_pass(lambda count: partial(self._measured, model, count), rows, setup.device, free)
            return counted(
                setup,
                self.adaptation,
                model,
                slots=self.slots,
                at_once=self.slots if self._side_by_side else 1,
                weights=self.slots * size_of_model(model),
                gradients=gradients,
                activations=max(0, passed - gradients),
            )

    def _measured(self, model: PreTrainedModel, rows: int) -> None:
        """Make the passes of a step, of which a second one finds the gradients of the first."""
        for _ in range(2 if self.micro_batch < self._largest_batch else 1):
            self._pass(model, rows)
        model.zero_grad()

    def _pass(self, model: PreTrainedModel, rows: int) -> None:
        """Make a forward and a backward pass over some of the longest rows."""
        tokens = self.setup.measurable(model)
        inputs, targets = tokens.batch(np.argsort(-tokens.sizes, kind="stable")[:rows])
        with self.setup.masked(0), self.setup.autocast():
            outputs = self.setup.outputs(model.train(), inputs, targets)
        self.setup.task.loss(outputs, targets, 0.0, None).sum().backward()  # type: ignore[no-untyped-call]


@contextmanager
def _without_gradients(model: PreTrainedModel) -> Iterator[None]:
    """Drop what a pass that fails has left: a trial would add to it."""
    try:
        yield
    finally:
        model.zero_grad()
