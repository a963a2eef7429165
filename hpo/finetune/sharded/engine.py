"""One process's part of a trial that is trained over several: its share of the weights and of every batch's rows.

Weights, gradients and optimiser state are divided over the processes (FSDP, Zhao et al., 2023; PyTorch's
`fully_shard`). All processes make the same moves in the same order, told by the array that started them.
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
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from hpo.core.errors import GaveWayError, OutOfMemoryError
from hpo.core.interrupts import StopRequest
from hpo.core.seeds import derived_seed
from hpo.core.trainer import Evaluation, TrialSpec
from hpo.finetune.adaptation import Adaptation
from hpo.finetune.data.batches import WINDOW, by_length
from hpo.finetune.device import memory_error, out_of_memory, scoring_batch
from hpo.finetune.engine import Trained
from hpo.finetune.models import dropout
from hpo.finetune.setup import Setup
from hpo.finetune.sharded.divide import DividedInitialState, copied_heads, divide, fill
from hpo.finetune.slot import Slot
from hpo.finetune.trial_model import begin, measured_seconds
from hpo.tasks.classification import Outputs

Array = np.ndarray[Any, Any]

SEEN = "seen"  # begins what the first process sends after each step: how far its trial is
HALT = "halt"  # what may come down the pipe while a segment is trained


class TooLargeError(GaveWayError):
    """A pass over a micro-batch does not fit in memory; one of half its size, the argument, may."""

    def __str__(self) -> str:
        return f"out of memory; from here on at most {self.args[0]} examples in one pass of each process"


@dataclass(frozen=True)
class Place:
    """A process's place in its group.

    Attributes:
        rank: Which process it is, from 0.
        shards: How many there are.
        port: Port on the loopback interface where they find each other.
        device: Device type; on CUDA each process has the device of its rank.
    """

    rank: int
    shards: int
    port: int
    device: str


class ShardEngine:
    """Holds one trial, whose model, optimiser and batches are divided over a process group; see `Engine`.

    Args:
        setup: What trials share; its model is on the CPU, whole, and goes to the device in parts.
        adaptation: What of the model they train.
        place: This process's place in the group.
        moves: Where the leading process asks for a halt.
    """

    window = WINDOW
    notes: Sequence[str] = ()

    def __init__(self, setup: Setup, adaptation: Adaptation, place: Place, moves: Connection) -> None:
        self.setup, self.adaptation = setup, adaptation
        self.rank, self.shards, self._moves = place.rank, place.shards, moves
        self.slots, self.micro_batch, self.threads = 1, setup.config.micro_batch, torch.get_num_threads()
        self.occupied: dict[int, Slot] = {}
        self.stop_request = StopRequest()
        setup.use(torch.device(place.device))
        heads = copied_heads(setup.model, setup.head)
        divide(setup.model, self.shards, setup.device, setup.precision)
        setup.initial = DividedInitialState(setup.model, setup.head, heads)

    @property
    def facts(self) -> Mapping[str, Any]:
        """Return nothing: the leading process says what the results depend on."""
        return {}

    def load(self, slot: int, trial: TrialSpec) -> None:
        """Put a trial into the slot, at its start."""
        self.occupied[slot] = begin(self.setup, self.adaptation, self.setup.model, trial, self.window)

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

    def _segment(self, slot: Slot) -> Outputs:
        """Train to the boundary and return the model's outputs on the validation split."""
        slot.model.train()
        loss = torch.zeros((), device=self.setup.device)
        while slot.seen < slot.boundary:
            if self._told_to_halt():
                raise InterruptedError("the study was interrupted")
            loss += self._step(slot, next(slot.batches))
            if self.rank == 0:
                self._moves.send((SEEN, (slot.seen, slot.boundaries[-1])))
        dist.all_reduce(loss)
        slot.loss = loss.item()
        return self._predict("validation")

    def _told_to_halt(self) -> bool:
        """Return, the same in all processes, whether the first one has been told to halt."""
        halt = torch.tensor(self.rank == 0 and self._moves.poll())
        if halt:
            self._moves.recv()
        dist.broadcast(halt, 0)  # on the CPU: no process waits for a device
        return bool(halt)

    def _step(self, slot: Slot, rows: Array) -> torch.Tensor:
        """Take one optimiser step and return this process's part of the batch's mean loss.

        Out of memory ends the group: the other processes are in the midst of the step, waiting for this one.
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
        """Add up the gradients of this process's rows; each loss is divided by the whole batch.

        All processes pass over as many rows, as each pass is one of all: those that fill up have no weight.
        """
        total = torch.zeros((), device=self.setup.device)
        own = self._divided(rows)[:, self.rank]
        weight = torch.from_numpy(self._divided(np.arange(len(rows)), fill=-1)[:, self.rank] >= 0)
        weight = weight.to(self.setup.device) / len(rows)
        for number, start in enumerate(range(0, len(own), self.micro_batch)):
            part = slice(start, start + self.micro_batch)
            inputs, targets = self.setup.tokens["train"].batch(own[part])
            with self.setup.masked(dropout.key(seed, number)), self.setup.autocast():
                logits = slot.model(**inputs).logits
            loss = (self.setup.losses(slot, logits, targets) * weight[part]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _divided(self, rows: Array, fill: int | None = None) -> Array:
        """Return rows as [rows of a process, processes], filled up with `fill` or the last row."""
        missing = -len(rows) % self.shards
        return np.pad(rows, (0, missing), constant_values=rows[-1] if fill is None else fill).reshape(-1, self.shards)

    # ------------------------------------------------------------ scoring and measuring

    @torch.no_grad()  # and not inference mode, whose tensors `fully_shard` could not use in training
    def _predict(self, split: str) -> Outputs:
        """Return, in every process, the model's outputs on a split: each computes its share of the rows."""
        model = self.setup.model.train(False)
        tokens = self.setup.tokens[split]
        size = scoring_batch(self.setup.device) * self.shards
        chunks = [self._divided(rows) for rows in by_length(tokens.lengths, size)]
        logits = []
        for rows in chunks:
            inputs, _ = tokens.batch(rows[:, self.rank])
            with self.setup.autocast():
                logits.append(model(**inputs).logits.float())
        own = torch.cat(logits)
        every = [torch.empty_like(own) for _ in range(self.shards)]
        dist.all_gather(every, own)
        gathered = torch.stack(every, dim=1).cpu().numpy()  # [rows of a process, processes, outputs], as the chunks
        outputs = np.empty((len(tokens.lengths), gathered.shape[-1]), dtype=gathered.dtype)
        outputs[np.concatenate(chunks)] = gathered
        return self.setup.outputs(split, outputs)

    def whole(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Gather weights tensor by tensor; only the first process, which writes them, holds on to them."""
        gathered = {}
        for name, tensor in weights.items():
            full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if self.rank == 0:
                gathered[name] = full.cpu()
        return gathered

    def outputs_of(self, model: PreTrainedModel, split: str) -> Outputs:
        """Return the outputs of a whole model; while no trial is in training."""
        self.setup.vocabulary.cut(model)
        fill(self.setup.model, model.state_dict())
        return self._predict(split)

    def fastest_slots(self, most: int) -> int:
        """Return one: a trial is divided over all devices."""
        return 1

    def seconds_per_example(self) -> float:
        """Measure the passes over a few batches, in which each process has rows of its own."""
        return measured_seconds(self.setup, self.setup.model) / self.shards
