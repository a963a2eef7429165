"""A supervisor: starts several workers of one study, replaces those that die, and shows what they do.

A worker is the process of `hpo worker`, which runs trials whose lock is free until none is left. A dead worker is
replaced; its trials are adopted by other workers. On this machine each worker is leased GPUs of its own; on a Ray
cluster the workers are of another class (`ray_worker`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from hpo.config.study_spec import StudySpec
from hpo.core.errors import StudyError
from hpo.core.events import Observer
from hpo.core.interrupts import STALLED
from hpo.execution.gpu_leases import leased
from hpo.execution.local_worker import LOST, LocalWorker, Worker
from hpo.execution.study_follower import StudyFollower, WorkerActivity
from hpo.execution.study_setup import folder_of
from hpo.storage import backends

log = logging.getLogger(__name__)

ASKED = threading.Event()
"""Set when this process is asked to end. The exception of the signal is not enough: other code may swallow it."""

POLL = 0.25  # seconds between two checks of the workers
MOST_DEATHS = 5  # of each worker, while no trial ends: one lost node may take several workers with it
STOPPING = 15.0  # seconds for the workers to put their trials back

Outcome = TypeVar("Outcome")


def run(
    study: StudySpec, arguments: Sequence[str], url: str, count: int, watch: Observer, last: Callable[[], Outcome]
) -> Outcome:
    """Run a study in processes of this machine until every trial has ended.

    Args:
        study: The validated study.
        arguments: Of `hpo worker`, the study first.
        url: URL of the storage.
        count: How many processes.
        watch: Told of what the storage shows.
        last: Called once all workers have ended.

    Returns:
        What `last` returns.

    Raises:
        HpoError: A worker has ended with an error that the user has to correct, or workers die before any trial ends.
        KeyboardInterrupt: After the workers have put their trials back.
    """
    backends.refuse(url)
    tuning = study.config.objective is None
    with leased(count, study.config.device if tuning else "cpu", study.config.shards) as leases:
        if tuning and not any(leases) and study.config.threads is None:
            arguments = [*arguments, "--set", f"threads={max(1, (os.cpu_count() or 1) // count)}"]
        starters = [
            partial(LocalWorker, arguments, url, log_of(study, place), lease) for place, lease in enumerate(leases)
        ]
        supervise(study, starters, url, watch)
    return last()


def log_of(study: StudySpec, place: int) -> Path:
    """Return the file that a worker's output is written to."""
    return folder_of(study.config.name) / "workers" / f"{place}.log"


def supervise(study: StudySpec, starters: Sequence[Callable[[], Worker]], url: str, watch: Observer) -> None:
    """Start workers, and replace those that die, until one ends because no trial is left; then end the others.

    Args:
        study: The validated study.
        starters: Each starts a worker.
        url: URL of the storage.
        watch: Told of what the storage shows.

    Raises:
        StudyError: A worker has ended with an error that the user has to correct, or workers die before any trial ends.
    """
    log.info("starting %d workers, whose output goes to %s", len(starters), log_of(study, 0).parent)
    follower = StudyFollower(study, url, watch)
    activity = WorkerActivity(log_of(study, 0))
    workers: list[Worker] = []
    deaths = 0
    try:
        for start in starters:
            workers.append(start())
        while not any(worker.poll() == 0 for worker in workers):  # the others may still wait for a place to run
            time.sleep(POLL)
            if ASKED.is_set():
                raise KeyboardInterrupt
            if follower.look():
                deaths = 0
            if not follower.found and (doing := activity.latest()):
                log.info("the first worker: %s", doing)
            deaths = _replace_dead(study, workers, starters, deaths, watch)
        follower.look(now=True)
    finally:
        _stop(workers)
        watch.closed()


def _replace_dead(
    study: StudySpec, workers: list[Worker], starters: Sequence[Callable[[], Worker]], deaths: int, watch: Observer
) -> int:
    """Replace the workers that died, and return the deaths since a trial ended.

    Raises:
        StudyError: A worker has ended with an error of the user's, or too many died.
    """
    for place, worker in enumerate(workers):
        code = worker.poll()
        if code is None or code == 0:
            continue
        if code in (1, 2) or deaths >= MOST_DEATHS * len(workers):
            raise StudyError(f"a worker has ended: {worker.last_words()}")
        deaths += 1
        output = log_of(study, place)
        watch.note(f"a worker was ended by {_reason(code)}; another takes its place (its log is {output})")
        workers[place] = starters[place]()
    return deaths


def _reason(code: int) -> str:
    """Return what an exit code means, as the end of a sentence."""
    named = {STALLED: "its watchdog", LOST: "the loss of its node"}
    return named.get(code, f"signal {-code}" if code < 0 else f"code {code}")


def _stop(workers: Sequence[Worker]) -> None:
    """Ask the workers that still run to end, and kill those that have not done so in time."""
    running = [worker for worker in workers if worker.poll() is None]
    for worker in running:
        worker.terminate()
    deadline = time.monotonic() + STOPPING
    while time.monotonic() < deadline and any(worker.poll() is None for worker in running):
        time.sleep(POLL / 5)
    for worker in running:
        if worker.poll() is None:
            worker.kill()  # its trials are adopted when the study is resumed
