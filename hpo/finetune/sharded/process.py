"""One process's part of a trial that is trained over several: its share of the weights and of every batch's rows.

Weights, gradients and optimiser state are divided over the processes (FSDP, Zhao et al., 2023; PyTorch's
`fully_shard`). All processes make the same moves in the same order, told by the array that started them.
"""

from __future__ import annotations

import copy
import math
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from hpo.config.schema import StudyConfig
from hpo.core.errors import ArrayShrankError, OutOfMemoryError
from hpo.core.interrupts import StopRequest
from hpo.core.seeds import derived_seed
from hpo.core.trainer import Evaluation, TrialSpec
from hpo.finetune import optimizer as optimizers
from hpo.finetune.adaptation import Adaptation, WholeModel
from hpo.finetune.array import FineTuneArray
from hpo.finetune.data.batches import WINDOW, by_length
from hpo.finetune.data.sources import Dataset
from hpo.finetune.device import memory_error, out_of_memory, scoring_batch
from hpo.finetune.engine import Trained
from hpo.finetune.models import dropout
from hpo.finetune.models.initial_state import InitialState
from hpo.finetune.plain import measured_seconds
from hpo.finetune.setup import Setup
from hpo.finetune.slot import Slot
from hpo.recipe.training_params import TrainingParams
from hpo.tasks.classification import Outputs

Array = np.ndarray[Any, Any]

SEEN = "seen"  # begins what the first process sends after each step: how far its trial is
HALT = "halt"  # what may come down the pipe while a segment is trained

# How long one process waits for the others within a step before that is an error.
TIMEOUT = timedelta(minutes=10)


class TooLargeError(ArrayShrankError):
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
        heads = dict(_heads(setup.model, setup.head))
        shard(setup.model, self.shards, setup.device, setup.precision)
        setup.initial = ShardedInitialState(setup.model, setup.head, heads)

    @property
    def facts(self) -> Mapping[str, Any]:
        """Return nothing: the leading process says what the results depend on."""
        return {}

    def load(self, slot: int, trial: TrialSpec) -> None:
        """Put a trial into the slot, at its start."""
        params, model = TrainingParams.of(trial.params), self.setup.model
        self.setup.initial.start(model, derived_seed(trial.seed, "head"), params.dropout)
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        optimizer = optimizers.build(parameters, self.setup.head, params)
        begun = self.setup.new_slot(
            trial,
            params,
            model,
            model.state_dict(),
            parameters,
            lambda name: optimizer.state[parameters[name]],
            self.window,
        )
        begun.optimizer = optimizer
        self.occupied[slot] = begun

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
        _fill(self.setup.model, model.state_dict())
        return self._predict(split)

    def fastest_slots(self, most: int) -> int:
        """Return one: a trial is divided over all devices."""
        return 1

    def seconds_per_example(self) -> float:
        """Measure the passes over a few batches, in which each process has rows of its own."""
        return measured_seconds(self.setup, self.setup.model) / self.shards


def build(
    engine: type[ShardEngine], place: Place, moves: Connection, config: StudyConfig, data: Dataset, folder: Path
) -> FineTuneArray:
    """Return this process's array; its study's settings say that the model is read on the CPU."""
    setup, adaptation = Setup(config, data, folder), WholeModel()
    adaptation.install(setup)
    setup.finish()
    return FineTuneArray(setup, engine(setup, adaptation, place, moves), adaptation, horizon_epochs=1)


def train(array: FineTuneArray) -> Evaluation:
    """Train the trial of an array to its next boundary and score it; raises what ended it."""
    outcome = array.advance()[0]
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


# ---------------------------------------------------------------- the model


def shard(model: PreTrainedModel, shards: int, device: torch.device, precision: str) -> None:
    """Divide a model over the process group, each transformer block for itself and then the rest.

    Gradients are summed over the processes, not averaged: each loss is divided by the whole batch already. In bf16
    the weights are gathered as such; what autocast would make of them would stay in memory until the backward pass.
    """
    bf16 = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    mesh = init_device_mesh(device.type, (shards,))
    for part in (*_blocks(model), model):
        divided = fully_shard(
            part,
            mesh=mesh,
            reshard_after_forward=True,  # the root too, or it would hold weights from before they are set anew
            mp_policy=bf16 if precision == "bf16" else MixedPrecisionPolicy(),
        )
        divided.set_gradient_divide_factor(1.0)
        divided.set_force_sum_reduction_for_comms(True)  # gloo cannot scale as it sums


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Return the members of the outermost lists of modules: the transformer blocks."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _blocks(child)


def _heads(model: nn.Module, head: frozenset[str]) -> Iterator[tuple[str, nn.Module]]:
    """Return copies of the modules that are not pretrained."""
    for prefix, module in model.named_modules():
        own = {f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False)}
        if own and head.issuperset(own):
            yield prefix, copy.deepcopy(module)


class ShardedInitialState(InitialState):
    """Puts a divided model back to its start; see `InitialState`.

    Args:
        model: The divided model, with its pretrained weights.
        head: Names of the parameters that are not pretrained.
        heads: Their modules, whole: each process draws all of a head and takes its share.
    """

    def __init__(self, model: PreTrainedModel, head: frozenset[str], heads: Mapping[str, nn.Module]) -> None:
        super().__init__(model, head)
        self.heads = heads

    def start(self, model: PreTrainedModel, seed: int, dropout: float | None) -> None:
        """Reset the model in place."""
        head, self.head = self.head, frozenset()  # a random number for a part of a tensor is not that of the whole
        super().start(model, seed, dropout)
        self.head = head
        for prefix, module in self.heads.items():
            for parameter in module.parameters(recurse=False):
                parameter.__dict__.pop("_is_hf_initialized", None)
            model._init_weights(module)  # type: ignore[no-untyped-call]
            _fill(model, {f"{prefix}.{name}": p for name, p in module.named_parameters(recurse=False)})


@torch.no_grad()
def _fill(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy whole tensors into a divided model: each process its own part."""
    parts = model.state_dict()
    for name, tensor in weights.items():
        part = parts[name]
        if isinstance(part, DTensor):
            tensor = distribute_tensor(tensor, part.device_mesh, part.placements, src_data_rank=None)
        part.copy_(tensor)


# ---------------------------------------------------------------- the process


def serve(engine: type[ShardEngine], place: Place, moves: Connection, *given: Any) -> None:
    """Join the group, build this process's part, and make the moves that come until the sender has gone.

    Args:
        engine: `ShardEngine`.
        place: This process's place in the group.
        moves: Where (method, arguments) come from, and what they return goes to: first whether there is a part.
        given: The further arguments of `build`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the leading process, which ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        if place.device == "cuda":
            torch.cuda.set_device(place.rank)
        store = dist.TCPStore("127.0.0.1", place.port, is_master=False)  # type: ignore[attr-defined]
        backend = "cpu:gloo,cuda:nccl" if place.device == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.shards, timeout=TIMEOUT)
        array = build(engine, place, moves, *given)
    except Exception as error:
        moves.send(_portable(error))
        return
    moves.send(None)
    while True:
        move = moves.recv()
        if move == HALT:  # it came when the segment had ended
            continue
        name, arguments = move
        try:
            reply = train(array) if name == "train" else getattr(array, name)(*arguments)
        except Exception as error:
            reply = _portable(error)
        moves.send(reply)


def _end_with_parent() -> None:
    """End this process when its parent has died, wherever it waits."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """Return an exception that can be sent to another process, with its traceback as a note."""
    try:
        sent: Exception = ForkingPickler.loads(ForkingPickler.dumps(error))  # as the pipe will
    except Exception:
        sent = RuntimeError(f"{type(error).__name__}: {error}")
    sent.add_note("".join(traceback.format_exception(error)))
    return sent
