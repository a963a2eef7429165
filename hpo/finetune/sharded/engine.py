"""The engine of one process of a divided trial: it has a part of the weights and trains on a part of every batch.

Weights, gradients and optimiser state are divided over the processes (`hpo/finetune/sharded/divide.py`). All processes
run the same commands in the same order, sent by the array that started them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from hpo.core.errors import ArrayShrankError, ModelError, OutOfMemoryError
from hpo.core.interrupts import StopRequest
from hpo.core.seeds import derived_seed
from hpo.core.trainer import Evaluation, TrialSpec
from hpo.finetune.adaptation import Adaptation
from hpo.finetune.data.batches import WINDOW, by_length
from hpo.finetune.data.encoded import Tensors
from hpo.finetune.device import memory_error, out_of_memory, scoring_batch
from hpo.finetune.engine import Trained
from hpo.finetune.models import dropout
from hpo.finetune.setup import Setup
from hpo.finetune.sharded.divide import DividedInitialState, copied_heads, divide, fill
from hpo.finetune.slot import Slot
from hpo.finetune.trial_model import measured_seconds
from hpo.finetune.trial_start import begin
from hpo.tasks.task import Predictions

Array = np.ndarray[Any, Any]

SEEN = "seen"  # begins a message of the first process after each step: how far the trial is
HALT = "halt"  # a message to the first process while it trains a segment: stop after this step


class TooLargeError(ArrayShrankError):
    """A pass over a micro-batch does not fit in memory; a pass over half of it may.

    Args:
        half: Rows of the smaller micro-batch.
    """

    def __str__(self) -> str:
        return f"out of memory; from here on at most {self.args[0]} examples in one pass of each process"


@dataclass(frozen=True)
class Place:
    """A process's place in its group.

    Attributes:
        rank: Number of the process, from 0.
        shards: How many processes there are.
        port: Port on the loopback interface where the processes find each other.
        device: Device type; on CUDA each process has the device of its rank.
    """

    rank: int
    shards: int
    port: int
    device: str


class ShardEngine:
    """Holds one trial, whose model, optimiser and batches are divided over a process group; see `Engine`.

    It is stopped by `HALT` from the pipe, not by `stop_request`; a segment that is stopped ends with an
    InterruptedError.

    Args:
        setup: What trials share; its model is whole and on the CPU, and is divided and moved to the device here.
        adaptation: What of the model they train.
        place: This process's place in the group.
        pipe: To the leading process.

    Attributes:
        rank: Number of this process, from 0.
        shards: How many processes there are.
        micro_batch: Rows of one pass of this process.
    """

    window = WINDOW
    notes: Sequence[str] = ()

    def __init__(self, setup: Setup, adaptation: Adaptation, place: Place, pipe: Connection) -> None:
        self.setup, self.adaptation = setup, adaptation
        self.rank, self.shards, self._pipe = place.rank, place.shards, pipe
        self.slots, self.micro_batch, self.threads = 1, setup.config.micro_batch, torch.get_num_threads()
        self.occupied: dict[int, Slot] = {}
        self.stop_request = StopRequest()
        setup.use(torch.device(place.device))
        heads = copied_heads(setup.model, setup.head)
        divide(setup.model, self.shards, setup.device, setup.precision)
        setup.initial = DividedInitialState(setup.model, setup.head, heads)

    @property
    def facts(self) -> Mapping[str, Any]:
        """Nothing: the leading process reports what the results depend on."""
        return {}

    def load(self, slot: int, trial: TrialSpec) -> None:
        """Put a trial into the slot, at its start."""
        self.occupied[slot] = begin(self.setup, self.adaptation, self.setup.model, trial, self.window)

    def generate(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> Mapping[int, list[str]]:
        """Refuse: a study with `shards` and `generate` is refused when its file is read."""
        raise ModelError("a divided model does not generate; leave shards or generate out")

    def unload(self, slot: int) -> None:
        """Empty the slot."""
        self.occupied.pop(slot, None)

    # ------------------------------------------------------------ training

    def train(self) -> Mapping[int, Trained]:
        """Train the trial to its boundary."""
        outcomes: dict[int, Trained] = {}
        for number, slot in self.occupied.items():
            try:
                outcomes[number] = self._segment(slot)
            except Exception as error:
                outcomes[number] = memory_error(error)
        return outcomes

    def make_room(self, outcomes: dict[int, Evaluation | Exception]) -> dict[int, Evaluation | Exception]:
        """Return the outcomes."""
        return outcomes

    def _segment(self, slot: Slot) -> Predictions:
        """Train to the boundary and return the model's predictions for the validation split."""
        slot.model.train()
        loss = torch.zeros((), device=self.setup.device)
        while slot.seen < slot.boundary:
            if self._halted():
                raise InterruptedError("the study was interrupted")
            loss += self._step(slot, next(slot.batches))
            if self.rank == 0:
                self._pipe.send((SEEN, (slot.seen, slot.boundaries[-1])))
        dist.all_reduce(loss)
        slot.loss = loss.item()
        return self._predict("validation")

    def _halted(self) -> bool:
        """Return whether the first process has received `HALT`; the answer is the same in all processes."""
        halt = torch.tensor(self.rank == 0 and self._pipe.poll())
        if halt:
            self._pipe.recv()
        dist.broadcast(halt, 0)  # on the CPU, so that no process waits for a device
        return bool(halt)

    def _step(self, slot: Slot, rows: Array) -> torch.Tensor:
        """Take one optimiser step and return this process's part of the batch's mean loss.

        A lack of memory ends the group: the other processes are in the middle of the step and wait for this one.

        Raises:
            TooLargeError: The micro-batch does not fit in memory.
            OutOfMemoryError: One example does not fit in memory.
        """
        seed = derived_seed(slot.trial.seed, "dropout", slot.step, self.rank)
        torch.manual_seed(seed)
        try:
            loss = self._accumulate(slot, rows, seed)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if half := min(self.micro_batch, math.ceil(len(rows) / self.shards)) // 2:
                raise TooLargeError(half) from error
            raise OutOfMemoryError("one example at a time does not fit in memory") from error
        slot.update(len(rows))
        slot.model.zero_grad()
        return loss

    def _accumulate(self, slot: Slot, rows: Array, seed: int) -> torch.Tensor:
        """Add up the gradients of this process's rows; each loss is divided by the units of the whole batch.

        All processes pass over the same number of rows, because every pass has collectives. Rows that fill a process's
        part up have weight 0.
        """
        total = torch.zeros((), device=self.setup.device)
        own = self._divided(rows)[:, self.rank]
        weight = torch.from_numpy(self._divided(np.arange(len(rows)), fill=-1)[:, self.rank] >= 0)
        weight = weight.to(self.setup.device) / max(1.0, self.setup.tokens["train"].units[rows].sum())
        for number, start in enumerate(range(0, len(own), self.micro_batch)):
            part = slice(start, start + self.micro_batch)
            inputs, targets = self.setup.tokens["train"].batch(own[part])
            with self.setup.masked(dropout.key(seed, number)), self.setup.autocast():
                outputs = self.setup.outputs(slot.model, inputs, targets)
            loss = (self.setup.losses(slot.params, outputs, targets) * weight[part]).sum()
            loss.backward()
            total += loss.detach()
        return total

    def _divided(self, rows: Array, fill: int | None = None) -> Array:
        """Return rows as [rows of a process, processes], filled up with `fill`, or with the last row."""
        missing = -len(rows) % self.shards
        return np.pad(rows, (0, missing), constant_values=rows[-1] if fill is None else fill).reshape(-1, self.shards)

    # ------------------------------------------------------------ scoring and measuring

    @torch.no_grad()  # not inference mode: `fully_shard` could not use its tensors in training
    def _predict(self, split: str) -> Predictions:
        """Return the model's predictions for a split, in every process; each process computes a part of the rows."""
        model = self.setup.model.train(False)
        tokens = self.setup.tokens[split]
        size = scoring_batch(self.setup.device) * self.shards
        chunks = [self._divided(rows) for rows in by_length(tokens.sizes, size)]
        found: list[Tensors] = []
        for rows in chunks:
            inputs, targets = tokens.batch(rows[:, self.rank])
            with self.setup.autocast():
                outputs = self.setup.outputs(model, inputs, targets)
            found.append(self.setup.task.answers(outputs, targets))
        places = np.concatenate(chunks)
        answers = {name: self._gathered([each[name] for each in found], places) for name in found[0]}
        return self.setup.predictions(split, answers)

    def _gathered(self, parts: Sequence[torch.Tensor], places: Array) -> Array:
        """Return answers of all processes in the order of a split's rows, [rows, ...].

        Args:
            parts: Answers of this process about the rows of each chunk, [b, ...] or [b, length, ...].
            places: [rows of a process, processes] row numbers.
        """
        if parts[0].ndim > 1:  # answers about tokens are padded to the longest of all processes
            longest = torch.tensor(max(part.shape[1] for part in parts), device=parts[0].device)
            dist.all_reduce(longest, dist.ReduceOp.MAX)
            parts = [F.pad(part, [*[0, 0] * (part.ndim - 2), 0, int(longest) - part.shape[1]]) for part in parts]
        own = torch.cat(list(parts))
        every = [torch.empty_like(own) for _ in range(self.shards)]
        dist.all_gather(every, own)
        gathered = torch.stack(every, dim=1).cpu().numpy()  # [rows of a process, processes, ...], as the chunks
        answers = np.empty((int(places.max()) + 1, *gathered.shape[2:]), dtype=gathered.dtype)
        answers[places] = gathered
        return answers

    def whole(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Gather weights tensor by tensor; only the first process, which writes them, returns any."""
        gathered = {}
        for name, tensor in weights.items():
            full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if self.rank == 0:
                gathered[name] = full.cpu()
        return gathered

    def predictions_of(self, model: PreTrainedModel, split: str) -> Predictions:
        """Return the predictions for a split of a whole model; call it while no trial is in training."""
        self.setup.vocabulary.cut(model)
        fill(self.setup.model, model.state_dict())
        return self._predict(split)

    def fastest_slots(self, most: int) -> int:
        """Return one: a trial is divided over all devices."""
        return 1

    def seconds_per_example(self) -> float:
        """Measure passes over a few batches, in which each process has its own rows."""
        return measured_seconds(self.setup, self.setup.model) / self.shards

    def memory(self, free: int | None) -> None:
        """Return None: how the processes share the memory of one computer is not known here."""
