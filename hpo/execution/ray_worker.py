"""The workers of a study as actors of a Ray cluster, with a GPU each where it has GPUs.

Ray says only where: an actor starts `hpo worker` as a process of its own, in which signals, exit codes and the
watchdog mean what they always do, and which leaves nothing behind on the GPU. If the actor dies, Ray ends its
processes; should one stay, its standard input ends, and it puts its trials back.
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
from hpo.execution.supervisor import LOST, LocalWorker, Outcome, Worker, log_of, supervise
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
    """Run a study on a cluster until every row has ended.

    Args:
        study: The validated study.
        arguments: Of `hpo worker`, the study first.
        url: URL of the storage; PostgreSQL only, which all nodes reach.
        count: How many workers; those that find no place wait for one.
        watch: Told of what the storage shows.
        last: What is to be done then, on the cluster too: this machine may have no GPU. It is pickled.
        address: Of the cluster; if None, `RAY_ADDRESS` or the one that this machine belongs to.

    Returns:
        What `last` returns.

    Raises:
        MissingExtraError: Ray is not installed.
        HpoError: There is no cluster, the storage is not one for several machines, a worker says what the user has to
            mend, or they die without getting anywhere.
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
        done, problem = ray.get(ray.remote(_there).options(**needs).remote(Path.cwd(), last))
    if problem:
        raise StudyError(problem)
    outcome: Outcome = done
    return outcome


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Connect to a cluster that exists, and yield the module `ray`."""
    try:
        import ray
    except ImportError:
        raise MissingExtraError("--executor ray", "ray") from None
    handler = signal.getsignal(signal.SIGTERM)
    place = address or os.environ.get("RAY_ADDRESS") or "auto"
    host, _, port = place.rpartition("//")[2].rpartition(":")
    try:
        if port.isdecimal():
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray would try for minutes
        ray.init(place, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise StudyError(
            f"no Ray cluster answers at {place} ({error}). Start one with `ray start --head`, or name one that this "
            "machine has joined: --address host:port"
        ) from None
    signal.signal(signal.SIGTERM, handler)  # Ray's own ends the process where it stands
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
    """Say how many workers find no place yet: there may be one later, and a cluster that can grow does."""
    places = min(int(free.get(name.removeprefix("num_").upper()[:-1], 0) // need) for name, need in needs.items())
    if places < count:
        kind = "GPUs" if "num_gpus" in needs else "CPUs"
        watch.note(f"the cluster has free {kind} for {places} of {count} workers; the others wait until there are more")


# ---------------------------------------------------------------- on a node


class Host:
    """An actor: one process, where Ray has put it, for as long as it lasts."""

    def __init__(self, folder: Path, arguments: Sequence[str], url: str, log: Path) -> None:
        self._worker: LocalWorker | None = None
        self._problem = _entered(folder)
        if not self._problem:
            self._worker = LocalWorker(arguments, url, log)

    def ended(self) -> tuple[int, str]:
        """Wait for the end of the process; return its exit code and its last words."""
        return (2, self._problem) if self._worker is None else (self._worker.wait(), self._worker.last_words())

    def terminate(self) -> None:
        """Ask the process to end."""
        if self._worker is not None:
            self._worker.terminate()


def _there(folder: Path, last: Callable[[], Outcome]) -> tuple[Outcome | None, str]:
    """Return what a function returns, or the user's problem as text: not every exception can be pickled."""
    try:
        problem = _entered(folder)
        return (None, problem) if problem else (last(), "")
    except HpoError as error:
        return None, str(error)


def _entered(folder: Path) -> str:
    """Work in a folder from here on; return why not."""
    try:
        os.chdir(folder)
    except OSError as error:
        return f"{platform.node()} has no {folder} ({error.strerror}): all nodes of a cluster must see the same files"
    return ""


# ---------------------------------------------------------------- seen from here


class _RayWorker(Worker):
    """A worker on whatever node has room for it; until one has, it only waits."""

    def __init__(self, host: Any, *given: Any) -> None:
        self._actor = host.remote(*given)
        self._begun = self._actor.__ray_ready__.remote()
        self._ended = self._actor.ended.remote()
        self._code: int | None = None
        self._said = ""

    def poll(self) -> int | None:
        """Return the process's exit code; if its actor is lost, so is it."""
        import ray

        if self._code is None and _ready(self._ended):
            try:
                self._code, self._said = ray.get(self._ended)
            except ray.exceptions.RayError as error:
                self._code, self._said = LOST, str(error)
            self.kill()  # its place is free now; an actor that is only cut off must not stay
        return self._code

    def last_words(self) -> str:
        """Return what its process said last, or what Ray says of its actor."""
        return self._said

    def terminate(self) -> None:
        """Ask its process to end; if there is none yet, there will be none."""
        if _ready(self._begun):
            self._actor.terminate.remote()
        else:
            self.kill()

    def kill(self) -> None:
        """End its actor at once, and with it the process."""
        import ray

        ray.kill(self._actor)


def _ready(reference: Any) -> bool:
    import ray

    return bool(ray.wait([reference], timeout=0)[0])
