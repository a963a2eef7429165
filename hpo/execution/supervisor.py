"""Several processes that run one study together: here on one machine, a GPU leased to each.

Each is `hpo worker`: it takes trials whose lock is free until none is left. Whoever dies is started again; its
trials are adopted by then or soon after. On other machines it is the same, with workers of another kind.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.config.study_spec import StudySpec
from hpo.core.errors import StorageGoneError, StudyError
from hpo.core.events import Observer
from hpo.core.interrupts import STALLED
from hpo.core.trainer import Evaluation, Seen
from hpo.execution.study_setup import folder_of, planned_rows
from hpo.recipe.hyperparameters import DEFAULTS
from hpo.storage import backends
from hpo.storage.file_lock import FileLock

log = logging.getLogger(__name__)

STORAGE = "HPO_WORKER_STORAGE"
"""Environment variable with the storage's URL: a password in it would show in a list of processes."""

SUPERVISED = "HPO_SUPERVISED"
"""Environment variable of a worker whose standard input ends when its supervisor does."""

ASKED = threading.Event()
"""Whether this process was asked to end: code that ignores exceptions may swallow that of the signal."""

LOOK = 1.0  # seconds between two looks at the storage
MOST_DEATHS = 5  # of each worker, while no trial ends: a node that is lost takes several along at once
STOPPING = 15.0  # seconds for the workers to put their trials back

LOST = 71
"""What stands for the exit code of a process that went with its machine."""

Outcome = TypeVar("Outcome")


# ---------------------------------------------------------------- GPUs


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them; none without NVIDIA's tools."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() and name.strip() != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return said.stdout.split() if said.returncode == 0 else []


@contextmanager
def leased(count: int, device: str, each: int = 1) -> Iterator[list[dict[str, str]]]:
    """Lease GPUs to some workers, `each` to every one, so that no two studies of this machine share one.

    Yields:
        The environment of each worker; without GPUs, or with `device` cpu, nothing to add to it.

    Raises:
        StudyError: There are GPUs, but too few that are free.
    """
    gpus = [] if device in ("cpu", "mps") else visible_gpus()
    if not gpus:
        yield [{} for _ in range(count)]
        return
    wanted = count * each
    with ExitStack() as stack:
        free: list[str] = []
        for gpu in gpus:
            lock = FileLock(Path(tempfile.gettempdir()) / "hpo-leases" / re.sub(r"[^\w-]", "_", gpu))
            if len(free) < wanted and lock.acquire(limit=0):
                stack.callback(lock.release)
                free.append(gpu)
        if len(free) < wanted:
            raise StudyError(
                f"{count} workers need {wanted} GPUs, and {len(free)} of {len(gpus)} are free; ask for fewer workers, "
                "or for several trials on each: --slots auto"
            )
        yield [{"CUDA_VISIBLE_DEVICES": ",".join(free[n * each : (n + 1) * each])} for n in range(count)]


# ---------------------------------------------------------------- a worker


class Worker(ABC):
    """A process that runs trials, started already, wherever it is."""

    @abstractmethod
    def poll(self) -> int | None:
        """Return its exit code; None while it runs."""

    @abstractmethod
    def last_words(self) -> str:
        """Return the error that it has ended with, as the user would have seen it."""

    @abstractmethod
    def terminate(self) -> None:
        """Ask it to put its trials back and end."""

    @abstractmethod
    def kill(self) -> None:
        """End it at once."""


class LocalWorker(Worker):
    """A worker on this machine.

    Args:
        arguments: Of `hpo worker`, the study first.
        url: URL of the storage.
        log: File that gets what it prints, after what is there.
        environment: What its environment has besides this process's.
    """

    def __init__(
        self, arguments: Sequence[str], url: str, log: Path, environment: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        command = [sys.executable, "-m", "hpo.cli", "worker", *arguments]
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as written:
            self._began = written.tell()
            # A session of its own: Ctrl-C is for the supervisor, who passes it on once.
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **environment, STORAGE: url, SUPERVISED: "1"},
                stdin=subprocess.PIPE,
                stdout=written,
                stderr=written,
                start_new_session=True,
            )

    def poll(self) -> int | None:
        """Return its exit code."""
        return self._process.poll()

    def wait(self) -> int:
        """Wait for its end, and return its exit code."""
        return self._process.wait()

    def last_words(self) -> str:
        """Return the last error in its log, or the log's end."""
        with self._log.open("rb") as file:
            file.seek(self._began)
            said = file.read().decode(errors="replace")
        return said.rpartition("error: ")[2].strip() if "error: " in said else said[-2000:].strip()

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()
        self._process.wait()


# ---------------------------------------------------------------- supervising


def run(
    study: StudySpec, arguments: Sequence[str], url: str, count: int, watch: Observer, last: Callable[[], Outcome]
) -> Outcome:
    """Run a study in processes of this machine until every row has ended.

    Args:
        study: The validated study.
        arguments: Of `hpo worker`, the study first.
        url: URL of the storage.
        count: How many processes.
        watch: Told of what the storage shows.
        last: What is to be done then.

    Returns:
        What `last` returns.

    Raises:
        HpoError: A worker says what the user has to mend, or they die without getting anywhere.
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
    """Return the file that gets what a worker prints."""
    return folder_of(study.config.name) / "workers" / f"{place}.log"


def supervise(study: StudySpec, starters: Sequence[Callable[[], Worker]], url: str, watch: Observer) -> None:
    """Start workers, and others for those that die, until one has found nothing left to do; then end the rest.

    Args:
        study: The validated study.
        starters: Start a worker each.
        url: URL of the storage.
        watch: Told of what the storage shows.

    Raises:
        StudyError: A worker says what the user has to mend, or they die without getting anywhere.
    """
    log.info("starting %d workers, whose output goes to %s", len(starters), log_of(study, 0).parent)
    follower = _Follower(study, url, watch)
    words = _Words(log_of(study, 0))
    workers: list[Worker] = []
    deaths = 0
    try:
        for start in starters:
            workers.append(start())
        while not any(worker.poll() == 0 for worker in workers):  # the others may still wait for a place to run
            time.sleep(LOOK / 4)
            if ASKED.is_set():
                raise KeyboardInterrupt
            if follower.look():
                deaths = 0
            if not follower.found and (said := words.last()):
                log.info("the first worker: %s", said)
            for place, worker in enumerate(workers):
                code = worker.poll()
                if code is None or code == 0:
                    continue
                if code in (1, 2) or deaths >= MOST_DEATHS * len(workers):
                    raise StudyError(f"a worker has ended: {worker.last_words()}")
                deaths += 1
                written = log_of(study, place)
                watch.note(f"a worker was ended by {_reason(code)}; another takes its place (its log is {written})")
                workers[place] = starters[place]()
        follower.look(now=True)
    finally:
        _stop(workers)
        watch.closed()


def _reason(code: int) -> str:
    """Return what an exit code means, as the end of a sentence."""
    named = {STALLED: "its watchdog", LOST: "the loss of its node"}
    return named.get(code, f"signal {-code}" if code < 0 else f"code {code}")


def _stop(workers: Sequence[Worker]) -> None:
    """End what still runs: politely, then not."""
    running = [worker for worker in workers if worker.poll() is None]
    for worker in running:
        worker.terminate()
    deadline = time.monotonic() + STOPPING
    while time.monotonic() < deadline and any(worker.poll() is None for worker in running):
        time.sleep(LOOK / 20)
    for worker in running:
        if worker.poll() is None:
            worker.kill()  # its trials are adopted when the study goes on


def end_with_supervisor() -> None:
    """Ask this process to end when its standard input does: its supervisor is dead."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


# ---------------------------------------------------------------- following


class _Words:
    """What a worker says, in its log, that it does: loading and checking, before any trial runs."""

    def __init__(self, written: Path) -> None:
        self._written = written
        self._read = written.stat().st_size if written.exists() else 0

    def last(self) -> str | None:
        """Return the last that is new, if any is."""
        with suppress(OSError), self._written.open("rb") as file:
            file.seek(self._read)
            whole, end, _ = file.read().rpartition(b"\n")
            self._read += len(whole) + len(end)
            lines = [line for line in whole.decode(errors="replace").splitlines() if line.startswith('doing "')]
            if lines:
                return str(json.JSONDecoder().raw_decode(lines[-1].removeprefix("doing "))[0])
        return None


class _Follower:
    """Tells a watcher what the storage shows of trials that other processes run."""

    def __init__(self, study: StudySpec, url: str, watch: Observer) -> None:
        self._study, self._url, self._watch = study, url, watch
        self._opened: optuna.Study | None = None
        self._shown: dict[int, int] = {}  # trial -> evaluations told of
        self._ended: set[int] = set()
        self._seen: dict[int, Seen] = {}
        self._due = 0.0

    @property
    def found(self) -> bool:
        """Whether the study is in the storage."""
        return self._opened is not None

    def look(self, *, now: bool = False) -> bool:
        """Look at the storage if it is time; return whether a trial has ended since the last look."""
        if not now and time.monotonic() < self._due:
            return False
        try:
            rows = self._rows()
        except StorageGoneError:
            raise
        except Exception:  # it is away, or not there yet; the workers wait for it, and say so
            rows = []
        before = len(self._ended)
        tuning = self._study.config.objective is None  # else steps may be anything, not only examples
        running = [row for row in rows if tuning and row.state == TrialState.RUNNING]
        self._seen = {row.number: (row.last_step or 0, self._whole(row)) for row in running}
        for row in rows:
            if row.number in self._ended or row.state == TrialState.WAITING:
                continue
            if row.number not in self._shown:
                self._watch.started(row.number, row.params)
            for step in sorted(row.intermediate_values)[self._shown.get(row.number, 0) :]:
                score = row.intermediate_values[step]
                said = Evaluation(score, at=step, of=self._whole(row)) if tuning else Evaluation(score)
                self._watch.evaluated(row.number, said)
            self._shown[row.number] = len(row.intermediate_values)
            if row.state.is_finished():
                self._watch.ended(row)
                self._ended.add(row.number)
        self._due = time.monotonic() + LOOK
        return len(self._ended) > before

    def _whole(self, row: FrozenTrial) -> int | None:
        """Return the examples of a trial's whole training, which follow from where it was scored; None if unknown."""
        config, evaluations = self._study.config, len(row.intermediate_values)
        if row.last_step is None:
            return None
        epochs = int(row.params.get("epochs", self._study.space.fixed.get("epochs", DEFAULTS["epochs"])))
        return max(round(row.last_step * config.evaluations_per_epoch * epochs / evaluations), row.last_step)

    def _rows(self) -> list[FrozenTrial]:
        name = self._study.config.name
        if self._opened is None:
            if not backends.exists(self._url):
                return []
            opened = optuna.load_study(study_name=name, storage=backends.look(self._url))
            facts = opened.user_attrs["fingerprint"]["facts"]
            finished = [row for row in opened.get_trials(deepcopy=False) if row.state.is_finished()]
            metric = facts.get("metric") or self._study.config.metric or "value"
            self._watch.opened(name, metric, opened.direction.name.lower(), planned_rows(self._study)[1], finished)
            self._ended = {row.number for row in finished}
            self._watch.follow(lambda: self._seen)
            self._opened = opened
        return self._opened.get_trials(deepcopy=False)
