"""The interface of engines: an engine holds trials in slots and trains them to the end of a segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from hpo.core.interrupts import StopRequest
from hpo.core.trainer import Evaluation, TrialSpec
from hpo.finetune.memory import Memory
from hpo.finetune.slot import Slot
from hpo.tasks.task import Predictions

Trained = Predictions | Exception | None
"""The result of a segment in a slot: predictions for the validation split, the exception that ended the trial, or None
if the segment was stopped before its end."""


class Engine(Protocol):
    """Trains the trials in its slots: one model each, one folded model, or a part of one model in every process.

    Attributes:
        slots: How many trials it holds at once.
        threads: CPU threads with which a trial trains; the trial's numbers depend on them.
        occupied: Slot -> the trial in it.
        stop_request: Once set, `train` returns as soon as the step under way is done, and `generate` raises.
        notes: What the user should know of how it trains.
    """

    slots: int
    threads: int
    occupied: dict[int, Slot]
    stop_request: StopRequest
    notes: Sequence[str]

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the results depend on because of this engine."""

    def load(self, slot: int, trial: TrialSpec) -> None:
        """Put a trial into an empty slot: at its start, or where its checkpoint left it.

        Raises:
            Exception: Of any kind; the slot is still empty.
        """

    def train(self) -> Mapping[int, Trained]:
        """Train every occupied slot to its boundary; a slot that has not reached it is left out, or None."""

    def make_room(self, outcomes: dict[int, Evaluation | Exception]) -> dict[int, Evaluation | Exception]:
        """Return the outcomes of a segment, changed if a copy of the best weights did not fit in memory."""

    def generate(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> Mapping[int, list[str]]:
        """Return what the models in some slots generate for prompts, with their present weights.

        Raises:
            RuntimeError: One row does not fit in memory.
            InterruptedError: A stop was due.
        """

    def unload(self, slot: int) -> None:
        """Empty a slot, whatever state its trial is in; nothing happens to an empty one."""

    def whole(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return weights of a slot as whole tensors; nothing in a process that does not write them."""

    def predictions_of(self, model: PreTrainedModel, split: str) -> Predictions:
        """Return the predictions for a split of a model that an adaptation opened."""

    def fastest_slots(self, most: int) -> int:
        """Return how many slots train the most examples a second; more than `most` are not needed."""

    def seconds_per_example(self) -> float:
        """Measure forward and backward passes over a few batches of the train split; no weight is changed."""

    def memory(self, free: int | None) -> Memory | None:
        """Estimate the peak of the memory that the trials in all slots take; no slot is occupied yet.

        Args:
            free: Bytes of which at most half may be used to find out; None for no limit.
        """
