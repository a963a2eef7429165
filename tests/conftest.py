from __future__ import annotations

import datetime
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read once, at the first product on a GPU
os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports transformers: no test asks the network

import hypothesis
import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.finetune.device import reproducible_mode
from hpo.search.samplers import DRAWN_BY, RANDOM
from hpo.storage.snapshot import Results

# A shell lets its background jobs ignore Ctrl-C, and a process that ignores it hands that on to those it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("MKL_CBWR", reproducible_mode())  # as a folded study does; read once, at the first product
optuna.logging.set_verbosity(optuna.logging.WARNING)
hypothesis.settings.register_profile("hpo", deadline=None, max_examples=60, derandomize=True, database=None)
hypothesis.settings.load_profile("hpo")

INITDB = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) + [Path(p) for p in [shutil.which("initdb")] if p]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let storms be large."""
    parser.addoption(
        "--full-storm", action="store_true", help="storms of 1,000 trials and 200 kills; 20 kills of tasks"
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give a file to one process, for what its tests set up together, but each storm to whoever is free."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduler(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if "test_storm.py" in nodeid else super()._split_scope(nodeid)

    config.option.loadscopereorder = False  # in the order below, not the largest file first
    return Scheduler(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes test, begin with what takes long."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


class Cluster:
    """A private PostgreSQL cluster on loopback, from the system's own package."""

    def __init__(self) -> None:
        # Not in pytest's folder, which another pytest that starts meanwhile closes to all other users.
        self.folder = Path(tempfile.mkdtemp(prefix="hpo-postgresql-"))
        self._as_user: list[str] = []
        if os.geteuid() == 0:  # a server refuses to run as root
            self._as_user = ["runuser", "-u", "postgres", "--"]
            shutil.chown(self.folder, "postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        password = self.folder / "password"
        password.write_text("canary")
        password.chmod(0o644)
        self._run("initdb", "-U", "tuner", "-A", "scram-sha-256", f"--pwfile={password}")
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as_user, str(INITDB[-1].parent / program), "-D", str(self.folder / "data"), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder)

    def start(self) -> None:
        """Start the server."""
        settings = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} -c fsync=off"
        self._run("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", settings, "start")

    def stop(self) -> None:
        """Stop it at once, as a crash would."""
        self._run("pg_ctl", "-m", "immediate", "stop")


@pytest.fixture(autouse=True)
def no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passwords that one test's URLs had are no secrets of the next, whose labels may be the same words."""
    monkeypatch.setattr("hpo.core.errors._secrets", set())


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the folder of the test, where no variable of the environment names a storage."""
    monkeypatch.chdir(tmp_path)
    for name in ("HPO_STORAGE", "HPO_STORAGE_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def postgresql_cluster() -> Iterator[Cluster]:
    """Start a cluster."""
    if not INITDB:
        pytest.skip("PostgreSQL is not installed (initdb not found): its storage is NOT tested here")
    cluster = Cluster()
    yield cluster
    cluster.stop()
    shutil.rmtree(cluster.folder)


@pytest.fixture(scope="session")
def postgresql_server(postgresql_cluster: Cluster) -> str:
    """Return the URL of a server that the password `canary` opens; it lacks the database."""
    return f"postgresql://tuner:canary@127.0.0.1:{postgresql_cluster.port}/"


@pytest.fixture
def postgresql(postgresql_server: str, request: pytest.FixtureRequest) -> str:
    """Return the URL of an empty database that the password `canary` opens."""
    import psycopg

    name = f"test_{abs(hash(request.node.nodeid))}"
    with psycopg.connect(f"{postgresql_server}postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return f"{postgresql_server}{name}"


@pytest.fixture
def hpo_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs `hpo ...` in this process: (exit code, stdout, stderr)."""

    from hpo.cli import app as cli

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hpo", *map(str, arguments)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as error:
            code = error.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def call(hpo_command: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str]]:
    """Return a function that runs `hpo ...` in this process: (exit code, all that it printed)."""

    def run(*arguments: Any) -> tuple[int, str]:
        code, out, err = hpo_command(*arguments)
        return code, out + err

    return run


@pytest.fixture
def sample_results() -> Callable[..., Results]:
    """Return a builder of studies as a tuner leaves them, with trials in every state."""
    start = datetime.datetime(2025, 3, 1, 9, 0, 0)
    space: dict[str, BaseDistribution] = {
        "learning_rate": FloatDistribution(1e-5, 1e-3, log=True),
        "batch_size": CategoricalDistribution((16, 32, 64)),
        "epochs": IntDistribution(2, 5),
        "schedule": CategoricalDistribution(("linear", "cosine", "polynomial")),
        "power": FloatDistribution(0.5, 3.0),  # only where the schedule is polynomial
    }

    def drawn(draw: random.Random) -> dict[str, Any]:
        params: dict[str, Any] = {
            "learning_rate": 10 ** draw.uniform(-5, -3),
            "batch_size": draw.choice((16, 32, 64)),
            "epochs": draw.randint(2, 5),
            "schedule": draw.choice(("linear", "cosine", "polynomial")),
        }
        return {**params, "power": draw.uniform(0.5, 3.0)} if params["schedule"] == "polynomial" else params

    def score(params: dict[str, Any], share: float, draw: random.Random) -> float:
        height = 0.93 - 0.08 * (math.log10(params["learning_rate"]) + 4.2) ** 2 - 0.0005 * params["batch_size"]
        return height * (1 - 0.35 * math.exp(-4 * share)) + draw.uniform(-0.004, 0.004)

    def trial(number: int, state: TrialState, draw: random.Random) -> FrozenTrial:
        default = {"learning_rate": 5e-5, "batch_size": 32, "epochs": 3, "schedule": "linear"}
        params = default if number == 0 else drawn(draw)
        if state == TrialState.WAITING:
            params = {}
        last = {TrialState.COMPLETE: 10, TrialState.PRUNED: 3, TrialState.RUNNING: 5}.get(state, 0)
        curve = {1000 * i: score(params, i / 10, draw) for i in range(1, last + 1)}
        attrs: dict[str, Any] = {"baseline": True} if number == 0 else {}
        if state == TrialState.PRUNED:
            attrs["reason"] = "diverged" if number % 2 else "median"
        if state == TrialState.FAIL:
            attrs |= {
                "reason": "ValueError",
                "detail": "<b>shape</b> mismatch",
                "traceback": "File secret.py",
            }
        made = create_trial(
            state=state,
            value=curve[1000 * last] if state in (TrialState.COMPLETE, TrialState.PRUNED) else None,
            params=params,
            distributions={name: space[name] for name in params},
            user_attrs=attrs,
            system_attrs={DRAWN_BY: RANDOM} if params and number else {},
            intermediate_values=curve,
        )
        made.number = number
        made.datetime_start = None if state == TrialState.WAITING else start + datetime.timedelta(seconds=40 * number)
        ended = start + datetime.timedelta(seconds=40 * number + 10 * max(last, 1))
        made.datetime_complete = ended if state.is_finished() else None
        return made

    def build(count: int = 30, *, name: str = "sst2", direction: str = "maximize", **attrs: Any) -> Results:
        draw = random.Random(7)
        pattern = {6: TrialState.PRUNED, 9: TrialState.PRUNED, 13: TrialState.FAIL, 21: TrialState.PRUNED}
        states = [pattern.get(i % 22, TrialState.COMPLETE) for i in range(count)]
        if count >= 30:
            states[-2:] = [TrialState.RUNNING, TrialState.WAITING]
        config = {
            "name": name,
            "metric": "accuracy",
            "model": "bert-base-uncased",
            "task": "auto",
            "data": {"dataset": None, "train": "train.csv", "validation": 0.1},
            "space": {"parameters": {"warmup_ratio": 0.1}, "baseline": {}, "source": "BERT"},
        }
        trials = tuple(trial(number, state, draw) for number, state in enumerate(states))
        fingerprint = {"settings": {}, "facts": {"task": "single_label"}}
        return Results(name, direction, trials, {"config": config, "fingerprint": fingerprint, **attrs})

    return build
