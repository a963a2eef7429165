"""A process of the group that trains one trial: it joins the group and answers the leading process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import torch
import torch.distributed as dist

from hpo.config.schema import StudyConfig
from hpo.core.trainer import Evaluation
from hpo.finetune.adaptation import WholeModel
from hpo.finetune.array import FineTuneArray
from hpo.finetune.setup import Setup
from hpo.finetune.sharded.engine import HALT, Place, ShardEngine
from hpo.tasks.dataset import Dataset

# How long a process waits for the others within a step before it raises an error.
TIMEOUT = timedelta(minutes=10)


def serve(
    engine_class: type[ShardEngine], place: Place, pipe: Connection, config: StudyConfig, data: Dataset, folder: Path
) -> None:
    """Join the group, build this process's array, and run commands until the pipe is closed.

    Args:
        engine_class: `ShardEngine`, or a subclass.
        place: This process's place in the group.
        pipe: Brings commands (method, arguments) and takes what they return, or the exception that they raised. The
            first thing sent is None when the array is ready, or an exception.
        config: The study's settings; they name the CPU as the device, so that the whole model is read there.
        data: Its data.
        folder: The study file's folder.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the leading process ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        if place.device == "cuda":
            torch.cuda.set_device(place.rank)
        store = dist.TCPStore("127.0.0.1", place.port, is_master=False)  # type: ignore[attr-defined]
        backend = "cpu:gloo,cuda:nccl" if place.device == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.shards, timeout=TIMEOUT)
        array = _array(engine_class, place, pipe, config, data, folder)
    except Exception as error:
        pipe.send(_portable(error))
        return
    pipe.send(None)
    while True:
        command = pipe.recv()
        if command == HALT:  # it arrived after the segment had ended
            continue
        name, arguments = command
        try:
            reply = _train(array) if name == "train" else getattr(array, name)(*arguments)
        except Exception as error:
            reply = _portable(error)
        pipe.send(reply)


def _end_with_parent() -> None:
    """End this process when its parent has died, whatever it is waiting for."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """Return an exception that can be sent to another process, with its traceback as a note."""
    try:
        sent: Exception = ForkingPickler.loads(ForkingPickler.dumps(error))  # as the pipe does
    except Exception:
        sent = RuntimeError(f"{type(error).__name__}: {error}")
    sent.add_note("".join(traceback.format_exception(error)))
    return sent


def _array(
    engine_class: type[ShardEngine], place: Place, pipe: Connection, config: StudyConfig, data: Dataset, folder: Path
) -> FineTuneArray:
    """Return this process's array."""
    setup, adaptation = Setup(config, data, folder), WholeModel()
    adaptation.install(setup)
    setup.finish()
    return FineTuneArray(setup, engine_class(setup, adaptation, place, pipe), adaptation, horizon_epochs=1)


def _train(array: FineTuneArray) -> Evaluation:
    """Train the trial of an array to its next boundary and score it.

    Raises:
        Exception: What ended the trial.
    """
    outcome = array.advance()[0]
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
