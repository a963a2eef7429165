"""Several processes on one machine that run one study together, a GPU leased to each.

Each is `hpo worker`: it takes trials whose lock is free until none is left. Whoever dies is started again; its
trials are adopted by then or soon after.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import TrialState

from hpo import storage as storages
from hpo.config import Study
from hpo.errors import StudyError
from hpo.flock import Flock
from hpo.halt import STALLED
from hpo.objective import Evaluation
from hpo.study import folder_of, planned_rows
from hpo.watcher import Watcher

STORAGE = "HPO_WORKER_STORAGE"
"""Environment variable with the storage's URL: a password in it would show in a list of processes."""

SUPERVISED = "HPO_SUPERVISED"
"""Environment variable of a worker whose standard input ends when its supervisor does."""

LOOK = 1.0  # seconds between two looks at the storage
MOST_DEATHS = 5  # of workers, while no trial ends
STOPPING = 15.0  # seconds for the workers to put their trials back


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
            lock = Flock(Path(tempfile.gettempdir()) / "hpo-leases" / re.sub(r"[^\w-]", "_", gpu))
            if len(free) < wanted and lock.acquire(wait=False):
                stack.callback(lock.release)
                free.append(gpu)
        if len(free) < wanted:
            raise StudyError(
                f"{count} workers need {wanted} GPUs, and {len(free)} of {len(gpus)} are free; ask for fewer workers, "
                "or for several trials on each: --slots auto"
            )
        yield [{"CUDA_VISIBLE_DEVICES": ",".join(free[n * each : (n + 1) * each])} for n in range(count)]


# ---------------------------------------------------------------- supervising


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    environment: Mapping[str, str]
    log: Path


def run(study: Study, arguments: Sequence[str], url: str, count: int, watch: Watcher) -> None:
    """Run a study in processes of their own until every row has ended.

    Args:
        study: The validated study.
        arguments: Of `hpo worker`, the study first.
        url: URL of the storage.
        count: How many processes.
        watch: Told of what the storage shows.

    Raises:
        HpoError: A worker says what the user has to mend, or they die without getting anywhere.
        KeyboardInterrupt: After the workers have put their trials back.
    """
    storages.refuse(url)
    logs = folder_of(study.config.name) / "workers"
    logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "hpo.cli", "worker", *arguments]
    tuning = study.config.objective is None
    with leased(count, study.config.device if tuning else "cpu", study.config.shards) as leases:
        if tuning and not any(leases) and study.config.threads is None:
            command += ["--set", f"threads={max(1, (os.cpu_count() or 1) // count)}"]
        workers = [_started(command, url, lease, logs / f"{n}.log") for n, lease in enumerate(leases)]
        try:
            _supervise(workers, command, url, _Follower(study, url, watch))
        finally:
            _stop(workers)
            watch.closed()


def _started(command: Sequence[str], url: str, lease: Mapping[str, str], log: Path) -> _Worker:
    environment = {**os.environ, **lease, STORAGE: url, SUPERVISED: "1"}
    with log.open("ab") as written:
        # A session of its own: Ctrl-C is for the supervisor, who passes it on once.
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=written, stderr=written, start_new_session=True
        )
    return _Worker(process, lease, log)


def _supervise(workers: list[_Worker], command: Sequence[str], url: str, follower: _Follower) -> None:
    """Start again whoever dies, until all have ended well."""
    deaths = 0
    while any(worker.process.poll() is None for worker in workers):
        time.sleep(LOOK / 4)
        if follower.look():
            deaths = 0
        for place, worker in enumerate(workers):
            code = worker.process.poll()
            if code in (None, 0):
                continue
            if code in (1, 2) or deaths >= MOST_DEATHS:
                raise StudyError(f"a worker has ended: {_last_words(worker.log)}")
            deaths += 1
            reason = "its watchdog" if code == STALLED else f"signal {-code}" if code < 0 else f"code {code}"
            follower.note(f"a worker was ended by {reason}; another takes its place (its log is {worker.log})")
            workers[place] = _started(command, url, worker.environment, worker.log)
    follower.look(now=True)


def _last_words(log: Path) -> str:
    """Return the error that a worker printed last, as the user would have seen it."""
    said = log.read_text(errors="replace")
    return said.rpartition("error: ")[2].strip() if "error: " in said else said[-2000:].strip()


def _stop(workers: Sequence[_Worker]) -> None:
    """End what still runs: politely, then not."""
    running = [worker.process for worker in workers if worker.process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOPPING
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()  # its trials are adopted when the study goes on
            process.wait()


def end_with_supervisor() -> None:
    """Ask this process to end when its standard input does: its supervisor is dead."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


# ---------------------------------------------------------------- following


class _Follower:
    """Tells a watcher what the storage shows of trials that other processes run."""

    def __init__(self, study: Study, url: str, watch: Watcher) -> None:
        self._study, self._url, self._watch = study, url, watch
        self._opened: optuna.Study | None = None
        self._shown: dict[int, int] = {}  # trial -> evaluations told of
        self._ended: set[int] = set()
        self._due = 0.0

    def note(self, message: str) -> None:
        """Pass a message on."""
        self._watch.note(message)

    def look(self, *, now: bool = False) -> bool:
        """Look at the storage if it is time; return whether a trial has ended since the last look."""
        if not now and time.monotonic() < self._due:
            return False
        try:
            rows = self._rows()
        except Exception:  # it is away, or not there yet; the workers wait for it, and say so
            rows = []
        before = len(self._ended)
        for row in rows:
            if row.number in self._ended or row.state == TrialState.WAITING:
                continue
            if row.number not in self._shown:
                self._watch.started(row.number, row.params)
            for step in sorted(row.intermediate_values)[self._shown.get(row.number, 0) :]:
                self._watch.evaluated(row.number, Evaluation(row.intermediate_values[step], at=step))
            self._shown[row.number] = len(row.intermediate_values)
            if row.state.is_finished():
                self._watch.ended(row)
                self._ended.add(row.number)
        self._due = time.monotonic() + LOOK
        return len(self._ended) > before

    def _rows(self) -> list[optuna.trial.FrozenTrial]:
        name = self._study.config.name
        if self._opened is None:
            if not storages.exists(self._url):
                return []
            opened = optuna.load_study(study_name=name, storage=storages.connect(self._url))
            facts = opened.user_attrs["fingerprint"]["facts"]
            finished = [row for row in opened.get_trials(deepcopy=False) if row.state.is_finished()]
            metric = facts.get("metric") or self._study.config.metric or "value"
            self._watch.opened(name, metric, opened.direction.name.lower(), planned_rows(self._study)[1], finished)
            self._ended = {row.number for row in finished}
            self._opened = opened
        return self._opened.get_trials(deepcopy=False)
