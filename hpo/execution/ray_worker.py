"""The workers of a study as actors of a Ray cluster, with a GPU each if the cluster has GPUs.

Ray only chooses the node: an actor starts `hpo worker` as a process of its own, so signals, exit codes and the watchdog
work as on one machine, and the process's GPU memory is freed when it ends. If the actor dies, Ray ends its processes.
If one survives that, its standard input ends, and it puts its trials back.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from hpo.config.study_spec import StudySpec
from hpo.core.errors import HpoError, MissingExtraError, StorageError, StudyError
from hpo.core.events import Observer
from hpo.execution.local_worker import LOST, LocalWorker, Worker
from hpo.execution.supervisor import Outcome, log_of, supervise
from hpo.storage.urls import POSTGRESQL, redacted, scheme_of


def run(
    study: StudySpec,
    arguments: Sequence[str],
    url: str,
    count: int,
    watch: Observer,
    last: Callable[[], Outcome],
    address: str | None = None,
) -> Outcome:
    """Run a study on a cluster until every trial has ended.

    Args:
        study: The validated study.
        arguments: Of `hpo worker`, the study first.
        url: URL of the storage; PostgreSQL only, which all nodes can reach.
        count: How many workers; those for which no resources are free wait.
        watch: Told of what the storage shows.
        last: Called on the cluster once all workers have ended, as this machine may have no GPU. It is pickled.
        address: Of the cluster; if None, `RAY_ADDRESS` or the cluster that this machine belongs to.

    Returns:
        What `last` returns.

    Raises:
        MissingExtraError: Ray is not installed.
        HpoError: There is no cluster, the storage is for one machine only, a worker has ended with an error that the
            user has to correct, or workers die before any trial ends.
        KeyboardInterrupt: After the workers have put their trials back.
    """
    if scheme_of(url) not in POSTGRESQL:
        raise StorageError(
            f"storage {redacted(url)} is for one machine; the nodes of a cluster share PostgreSQL: "
            "--storage postgresql://user@host/database"
        )
    with _connected(address) as ray:
        needs = _needs(study, ray.cluster_resources())
        if "num_gpus" not in needs and study.config.threads is None and study.config.objective is None:
            arguments = [*arguments, "--set", "threads=1"]
        _note_waiting(watch, count, needs, ray.available_resources())
        host = ray.remote(Host).options(**needs, max_concurrency=2, scheduling_strategy="SPREAD")
        starters = [
            partial(_RayWorker, host, Path.cwd(), arguments, url, log_of(study, place)) for place in range(count)
        ]
        supervise(study, starters, url, watch)
        done, problem = ray.get(ray.remote(_finish_on_node).options(**needs).remote(Path.cwd(), last))
    if problem:
        raise StudyError(problem)
    outcome: Outcome = done
    return outcome


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Connect to a running cluster, and yield the module `ray`."""
    try:
        import ray
    except ImportError:
        raise MissingExtraError("--executor ray", "ray") from None
    handler = signal.getsignal(signal.SIGTERM)
    place = address or os.environ.get("RAY_ADDRESS") or "auto"
    host, _, port = place.rpartition("//")[2].rpartition(":")
    try:
        if port.isdecimal():
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray would retry for minutes
        ray.init(place, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise StudyError(
            f"no Ray cluster answers at {place} ({error}). Start one with `ray start --head`, or name one that this "
            "machine has joined: --address host:port"
        ) from None
    signal.signal(signal.SIGTERM, handler)  # Ray's handler would end the process at once
    try:
        yield ray
    finally:
        ray.shutdown()


def _needs(study: StudySpec, cluster: dict[str, float]) -> dict[str, float]:
    """Return the resources of a worker."""
    cpus: dict[str, float] = {"num_cpus": study.config.threads or 1}
    gpu = cluster.get("GPU", 0) > 0 and study.config.device not in ("cpu", "mps")
    return {**cpus, "num_gpus": 1} if gpu else cpus


def _note_waiting(watch: Observer, count: int, needs: dict[str, float], free: dict[str, float]) -> None:
    """Note how many workers have to wait for resources, which a cluster may free or add later."""
    places = min(int(free.get(name.removeprefix("num_").upper()[:-1], 0) // need) for name, need in needs.items())
    if places < count:
        kind = "GPUs" if "num_gpus" in needs else "CPUs"
        watch.note(f"the cluster has free {kind} for {places} of {count} workers; the others wait until there are more")


# ---------------------------------------------------------------- on a node


class Host:
    """An actor that starts one worker on its node, and lives as long as the worker."""

    def __init__(self, folder: Path, arguments: Sequence[str], url: str, log: Path) -> None:
        self._worker: LocalWorker | None = None
        self._problem = _enter(folder)
        if not self._problem:
            self._worker = LocalWorker(arguments, url, log)

    def ended(self) -> tuple[int, str]:
        """Wait for the end of the process; return its exit code and its error."""
        return (2, self._problem) if self._worker is None else (self._worker.wait(), self._worker.last_words())

    def terminate(self) -> None:
        """Ask the process to end."""
        if self._worker is not None:
            self._worker.terminate()


def _finish_on_node(folder: Path, last: Callable[[], Outcome]) -> tuple[Outcome | None, str]:
    """Return what a function returns, or its error as text: not every exception can be pickled."""
    try:
        problem = _enter(folder)
        return (None, problem) if problem else (last(), "")
    except HpoError as error:
        return None, str(error)


def _enter(folder: Path) -> str:
    """Change the working folder; return the problem, if there is one."""
    try:
        os.chdir(folder)
    except OSError as error:
        return f"{platform.node()} has no {folder} ({error.strerror}): all nodes of a cluster must see the same files"
    return ""


# ---------------------------------------------------------------- on this machine


class _RayWorker(Worker):
    """A worker on a node that Ray chooses; it waits until a node has free resources."""

    def __init__(self, host: Any, *given: Any) -> None:
        self._actor = host.remote(*given)
        self._begun = self._actor.__ray_ready__.remote()
        self._ended = self._actor.ended.remote()
        self._code: int | None = None
        self._error = ""

    def poll(self) -> int | None:
        """Return the process's exit code; `LOST` if its actor was lost."""
        import ray

        if self._code is None and _ready(self._ended):
            try:
                self._code, self._error = ray.get(self._ended)
            except ray.exceptions.RayError as error:
                self._code, self._error = LOST, str(error)
            self.kill()  # frees its resources; the process of an actor that is only disconnected must end
        return self._code

    def last_words(self) -> str:
        """Return the error of its process, or Ray's error about its actor."""
        return self._error

    def terminate(self) -> None:
        """Ask its process to end; if it has not started, it never will."""
        if _ready(self._begun):
            self._actor.terminate.remote()
        else:
            self.kill()

    def kill(self) -> None:
        """End its actor at once, and so the process."""
        import ray

        ray.kill(self._actor)


def _ready(reference: Any) -> bool:
    import ray

    return bool(ray.wait([reference], timeout=0)[0])
