"""For a trial too large for one device: an array of one slot whose trial is trained by a group of processes.

    leading process    runner, storage; holds no model             one pipe to each process of the group
    process 0 ... n-1  a `ShardEngine` each: part of the weights    run the same commands, with collectives among them

The leading process is not part of the group, so nothing that happens in the group can block it: a process that dies
closes its pipe, and a process that waits for another for ever is killed.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import signal
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hpo.config.schema import Decoding, StudyConfig
from hpo.core.errors import DivergedError, HpoError, ModelError, OutOfMemoryError
from hpo.core.interrupts import StopRequest
from hpo.core.trainer import Evaluation, Seen, TrialSpec
from hpo.finetune import device
from hpo.finetune.scorable import OneModelArray
from hpo.finetune.setup import Setup
from hpo.finetune.sharded.engine import HALT, SEEN, Place, ShardEngine, TooLargeError
from hpo.finetune.sharded.process import serve
from hpo.tasks.dataset import Dataset
from hpo.tasks.registry import TASKS
from hpo.tasks.task import Predictions

log = logging.getLogger(__name__)

# Seconds that the other processes have to answer after one has failed: they may be waiting for it.
GRACE = 5.0
POLL = 0.1  # seconds between two looks at `stop_request`

WRITES_NOTHING = "a study with shards and generate is refused"


class ShardLostError(HpoError):
    """A process of the group has ended by itself."""


@dataclass
class _Group:
    """The processes of a group.

    Attributes:
        store: The `TCPStore` through which they find each other.
        processes: By rank.
        pipes: By rank; the leading process's end of each.
    """

    store: Any
    processes: list[SpawnProcess] = field(default_factory=list)
    pipes: list[Connection] = field(default_factory=list)

    def end(self) -> None:
        """Kill the processes that are left."""
        for process in self.processes:
            process.kill()  # a process that waits in a collective reacts to nothing else
        for process in self.processes:
            process.join()
        for pipe in self.pipes:
            pipe.close()
        self.store = None


class ShardedArray:
    """Trains one trial at a time over `shards` processes, each with a device of its own.

    Args:
        config: The study's settings.
        data: Its data.
        folder: The study file's folder.
        horizon_epochs: Most epochs that the space allows.

    Attributes:
        engine_class: The engine of each process.
        shards: How many processes there are.
        setup: What trials share; without its model, of which the processes have parts.
        micro_batch: Rows of one pass of each process; halved after a lack of memory.

    Raises:
        ModelError: The model cannot be loaded or divided, or there are too few devices.
    """

    engine_class: type[ShardEngine] = ShardEngine

    def __init__(self, config: StudyConfig, data: Dataset, folder: Path, horizon_epochs: int) -> None:
        if TASKS[data.task].emits_tokens:
            raise ModelError(
                f"shards: models of task {data.task!r} are not divided, because their scores are computed from the "
                "whole vocabulary; leave shards out, and train adapters (lora_rank) if a model does not fit"
            )
        self.shards, self.slots, self.stop_request = config.shards, 1, StopRequest()
        where = _chosen(config)
        precision = device.precision(config.precision, where)
        config = config.model_copy(update={"device": "cpu", "precision": precision})
        self.setup = Setup(config, data, folder)
        self.setup.finish()
        self.setup.release_model()
        self.setup.device = where
        self.metric, self.micro_batch = self.setup.metric, config.micro_batch
        self.notes: Sequence[str] = self.setup.notes
        self.segment = self.setup.segment
        self.horizon: int | None = self.setup.train_rows * horizon_epochs
        self._threads = torch.get_num_threads()
        threads = max(1, self._threads // self.shards)
        self._config, self._data, self._folder = config.model_copy(update={"threads": threads}), data, folder
        self._trial: TrialSpec | None = None
        self._loaded = False  # whether the processes have the trial
        self._seen: Seen | None = None
        self._group: _Group | None = None

    @property
    def models(self) -> Mapping[str, OneModelArray]:
        """Its one model -> itself."""
        return {str(self.setup.config.model): self}

    def of(self, params: Mapping[str, Any]) -> OneModelArray:
        """Return itself: all trials have its model."""
        return self

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the results depend on besides the study file."""
        return {**self.setup.facts, "shards": self.shards, "threads": self._threads}

    def resume_with(self, facts: Mapping[str, Any]) -> None:
        """Report the threads that the study was begun with; the processes divide the threads of this computer."""
        threads = facts.get("threads")
        if isinstance(threads, int) and threads > 0:
            self._threads = threads

    # ------------------------------------------------------------ the trial

    def load(self, slot: int, trial: TrialSpec) -> None:
        """Put a trial into the slot; `advance` sends it to the processes, and starts them if there are none."""
        self._trial, self._loaded, self._seen = trial, False, None

    def advance(self) -> dict[int, Evaluation | Exception]:
        """Train the trial to its next boundary and score it on the validation split.

        Raises:
            ShardLostError: A process of the group has ended by itself.
        """
        if self._trial is None:
            return {}
        try:
            if not self._loaded:
                self._command("load", 0, self._trial)
                self._loaded = True
            return {0: self._command("train")}
        except ShardLostError:  # ends the study, not the trial alone
            raise
        except InterruptedError:  # `stop_request` was set
            return {}
        except TooLargeError as error:
            self.micro_batch = error.args[0]
            return {0: error}
        except Exception as error:
            return {0: error}

    def save_weights(self, slot: int, folder: Path) -> bool:
        """Write the best evaluation's weights as a Hugging Face folder."""
        return bool(self._command("save_weights", slot, folder.resolve()))

    def seen(self, slot: int) -> Seen | None:
        """Return how far the trial was after the last step that the processes reported; None before the first."""
        return self._seen

    def save(self, slot: int) -> None:
        """Return None: a divided trial has no checkpoint, and restarts from its seed."""
        return

    def pause(self, slot: int) -> bool:
        """Return False: a trial is held in the slot only."""
        return False

    def unload(self, slot: int) -> None:
        """Empty the slot; the processes wait for the next trial."""
        self._trial = self._seen = None
        if self._loaded and self._group is not None:
            self._loaded = False
            self._command("unload", slot)

    def predictions_of(self, folder: Path, split: str, *, decoding: Decoding | None = None) -> Predictions:
        """Return the predictions for a split of written weights; call it while no trial is in training."""
        assert decoding is None, WRITES_NOTHING
        predictions: Predictions = self._command("predictions_of", folder.resolve(), split)
        return predictions

    def as_trained(self, folder: Path, split: str) -> None:
        """Return None: whole models are written as they were trained."""

    def untuned(self, split: str, *, decoding: Decoding | None = None) -> None:
        """Return None: models that give out tokens are not divided."""

    def written(self, folder: Path, split: str, rows: Any, decodings: Sequence[Decoding]) -> Iterator[list[str]]:
        """Not called: such a study generates nothing."""
        raise AssertionError(WRITES_NOTHING)

    def set_decoding(self, folder: Path, decoding: Decoding) -> None:
        """Not called: such a study generates nothing."""
        raise AssertionError(WRITES_NOTHING)

    def fastest_slots(self, most: int) -> int:
        """Return one: a trial is divided over all devices."""
        return 1

    def seconds_per_example(self) -> float:
        """Measure forward and backward passes over a few batches of the train split; no weight is changed."""
        return float(self._command("seconds_per_example"))

    def memory(self) -> None:
        """Return None: each process has a part of the model, on a device of its own."""

    def memory_used(self) -> None:
        """Return None: this process holds no model."""

    def memory_free(self) -> None:
        """Return None: this process holds no model."""

    # ------------------------------------------------------------ the group

    def _command(self, name: str, *arguments: Any) -> Any:
        """Let all processes call a method of their arrays, and return the answer of the first process.

        Raises:
            ShardLostError: A process has ended by itself.
            Exception: A process raised it. If others may wait for that process, all are ended, and the next command
                starts new ones.
        """
        try:
            group = self._group or self._started_group()
            for pipe in group.pipes:
                with suppress(OSError):  # the process has ended; `_answers` reports it
                    pipe.send((name, arguments))
            return self._answers(group)
        except _IN_ALL_PROCESSES:
            raise
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the processes; the next command starts new ones."""
        if self._group is not None:
            self._group.end()
        self._group = None

    def _started_group(self) -> _Group:
        """Start the processes and wait until each has its part of the model."""
        log.info("starting %d processes that share the model", self.shards)
        context = multiprocessing.get_context("spawn")
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        self._group = group = _Group(store)
        weakref.finalize(self, group.end)
        config = self._config.model_copy(update={"micro_batch": self.micro_batch})
        for rank in range(self.shards):
            ours, theirs = context.Pipe()
            place = Place(rank, self.shards, store.port, self.setup.device.type)
            process = context.Process(
                target=serve,
                args=(self.engine_class, place, theirs, config, self._data, self._folder),
                name=f"shard {rank}",
                daemon=True,
            )
            group.pipes.append(ours)
            process.start()
            group.processes.append(process)
            theirs.close()  # else this process would not see the pipe close when the other process dies
        self._answers(group)
        return group

    def _answers(self, group: _Group) -> Any:
        """Wait for the answers of all processes; once one has failed, for `GRACE` seconds more.

        Returns:
            The answer of the first process.

        Raises:
            Exception: The failure that is closest to the cause.
        """
        answers: dict[int, Any] = {}
        deadline, told = math.inf, False
        while len(answers) < self.shards and time.monotonic() < deadline:
            if self.stop_request.is_set() and not told:
                told = True
                with suppress(OSError):
                    group.pipes[0].send(HALT)
            for pipe in wait([pipe for rank, pipe in enumerate(group.pipes) if rank not in answers], POLL):
                assert isinstance(pipe, Connection)
                rank = group.pipes.index(pipe)
                try:
                    answer = pipe.recv()
                    if isinstance(answer, tuple) and answer[0] == SEEN:
                        self._seen = answer[1]
                        continue
                    answers[rank] = answer
                except (EOFError, OSError):
                    answers[rank] = _lost(group.processes[rank])
                if isinstance(answers[rank], Exception):
                    deadline = min(deadline, time.monotonic() + GRACE)
        if len(answers) < self.shards:
            self.close()
        if failures := [answer for answer in answers.values() if isinstance(answer, Exception)]:
            raise min(failures, key=_distance)
        return answers[0]


# Errors that all processes raise together, between two steps, so that none waits for another.
_IN_ALL_PROCESSES = (DivergedError, InterruptedError)


def _distance(failure: Exception) -> int:
    """Return how far from the cause a failure is: after one process has ended, the others fail too, at a collective."""
    if isinstance(failure, ShardLostError):
        return 0
    if isinstance(failure, TooLargeError | OutOfMemoryError):
        return 1
    return 3 if isinstance(failure, _IN_ALL_PROCESSES) else 2


def _chosen(config: StudyConfig) -> torch.device:
    """Return the kind of device to train on.

    Raises:
        ModelError: There is not one for each process.
    """
    where = device.chosen(config.device)
    if where.type == "mps":
        raise ModelError("shards are for CUDA devices or CPU processes; write device: cpu")
    if where.type == "cuda" and torch.cuda.device_count() < config.shards:
        raise ModelError(f"shards: {config.shards} needs as many GPUs, and there are {torch.cuda.device_count()}")
    return where


def _lost(process: SpawnProcess) -> ShardLostError:
    process.join(1)
    code = process.exitcode
    how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
    return ShardLostError(
        f"the process of {process.name} has ended ({how}), so the trial cannot go on; it waits to be trained again, "
        "and the same command continues the study"
    )
