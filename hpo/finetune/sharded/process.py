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
from typing import Any

import torch
import torch.distributed as dist

from hpo.config.schema import StudyConfig
from hpo.core.trainer import Evaluation
from hpo.finetune.adaptation import WholeModel
from hpo.finetune.array import FineTuneArray
from hpo.finetune.data.sources import Dataset
from hpo.finetune.setup import Setup
from hpo.finetune.sharded.engine import HALT, Place, ShardEngine

# How long one process waits for the others within a step before that is an error.
TIMEOUT = timedelta(minutes=10)


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
