"""A kill storm: many processes run one study, and are killed at random moments; nothing may be lost.

    python tests/support/storm.py sqlite:////tmp/a.db --trials 120 --workers 8 --kills 30
    python tests/support/storm.py sqlite:////tmp/a.db --starts 6 --trials 6 --workers 4 --kills 6

With `--starts`, a new storage is begun so many times, and each process is killed, stopped for a moment, or killed while
it is stopped, before it has scored anything. Prints what became of the study as JSON. Full size is `--trials 1000
--kills 200`.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import importlib
import json
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

import hpo
from hpo.config import study_spec
from hpo.core.errors import HpoError
from hpo.core.events import Silent
from hpo.execution import checkpoint_writer, run_study
from hpo.storage import backends

SPACE = {
    "x": {"low": 0.0, "high": 1.0},
    "rate": {"low": 1e-5, "high": 1e-2, "log": True},
    "kind": ["a", "b", "c"],
    "depth": {"low": 1, "high": 4, "when": {"kind": ["a", "b"]}},
}
GRID = {"x": [i / 10 for i in range(10)], "y": [1, 2, 3, 4], "kind": ["a", "b", "c"]}
STEPS = 9
AT_WORK = Path("at_work")  # a file a process that has scored a trial
SETTINGS: dict[str, dict[str, Any]] = {
    "random": {"space": SPACE, "sampler": "random", "pruner": "none"},
    "grid": {"space": GRID, "sampler": "grid", "pruner": "none"},
    "free": {"space": SPACE, "sampler": "tpe", "pruner": "asha"},
    "promotion": {
        "space": SPACE,
        "sampler": "tpe",
        "pruner": {"name": "asha", "type": "promotion", "reduction_factor": 3},
    },
    "auto": {"space": SPACE, "sampler": "auto", "pruner": "auto"},
    "rounds": {"space": SPACE, "sampler": "tpe", "pruner": "asha", "round_size": 12},
}


def objective(params: Mapping[str, Any]) -> Iterator[float]:
    """Yield a curve that is a function of the parameters, in a time that is not."""
    for value in curve(params):
        time.sleep(random.random() * PAUSE)
        yield value


def curve(params: Mapping[str, Any]) -> list[float]:
    """Return the curve of some parameters."""
    base = float(params["x"]) + len(str(params["kind"])) + 0.1 * params.get("depth", 0)
    return [base + params.get("rate", params.get("y", 0)) * step for step in range(1, STEPS + 1)]


class AtWork(Silent):
    """Says that a process has scored a trial."""

    def evaluated(self, number: int, evaluation: Any) -> None:
        """Leave a file, and take a while."""
        time.sleep(random.random() * PAUSE)
        (AT_WORK / str(os.getpid())).touch()

    def note(self, message: str) -> None:
        """Refuse a checkpoint that is of no use: whatever is killed, a file is whole or not there."""
        assert "begins anew" not in message, message


def run(name: str, url: str | None, trials: int) -> optuna.Study:
    """Run the study, or go on with it, until every row has ended; `finetune` is the study file of that name here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "finetune":
            assert url is not None
            return run_study.run(study_spec.load(Path("finetune.yaml"), {"trials": trials}), url, AtWork()).study
        settings = {**SETTINGS[name], "trials": trials, "seed": 7}
        return hpo.optimize(objective, name="storm", storage=url, watch=AtWork(), **settings)


EARLY = ["alembic.command", "alembic.config", "alembic.migration", "alembic.script", "optuna.storages._rdb.models"]
EARLY += ["psycopg", "sqlalchemy.dialects.postgresql.psycopg", "sqlalchemy.dialects.sqlite"]
TRAINING = ["hpo.finetune.open", "sklearn.metrics", "scipy.stats", "transformers.models.bert.modeling_bert"]


def import_early(*modules: str) -> None:
    """Import what each fork would have to, again and again, for half a second, or for five where it trains."""
    for module in (*EARLY, *modules):
        importlib.import_module(module)


def work(name: str, url: str, trials: int) -> None:
    """Be one of the processes, in a fork."""
    random.seed(os.getpid())
    try:
        run(name, url, trials)
        os._exit(0)
    except HpoError as error:
        print(error, file=sys.stderr, flush=True)
    except BaseException:
        import traceback

        traceback.print_exc()
    os._exit(1)


class Harm:
    """What is done to processes in their start-up: killed, stopped for a moment, killed while stopped."""

    def __init__(self, chance: random.Random, most: int, window: float) -> None:
        self._chance, self._left, self._window = chance, most, window
        self._due: list[tuple[float, int, int]] = []  # when, to whom, which signal
        self.done: collections.Counter[str] = collections.Counter()

    def plan(self, pid: int) -> None:
        """Choose what becomes of a process that has just been started."""
        if self._left == 0:
            return
        self._left -= 1
        kind = self._chance.choice(["kill", "stop", "both"])
        at = time.monotonic() + self._chance.random() * self._window
        then = at + self._chance.random() * self._window
        self._due += [(at, pid, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)]
        self._due += [(then, pid, signal.SIGCONT)] if kind == "stop" else []
        self._due += [(then, pid, signal.SIGKILL)] if kind == "both" else []
        self.done[kind] += 1

    def strike(self, living: Iterable[int]) -> None:
        """Send the signals that are due."""
        now = time.monotonic()
        for at, pid, number in sorted(self._due):
            if at <= now and pid in living:
                os.kill(pid, number)
        self._due = [due for due in self._due if due[0] > now]


def storm(
    name: str, url: str, trials: int, workers: int, kills: int, gap: float, seed: int, *, early: float = 0.0
) -> dict[str, Any]:
    """Run the study to its end under fire, and return what is to be said of it.

    Args:
        name: A key of `SETTINGS`, or `finetune`.
        url: URL of the storage.
        trials: Rows of the study.
        workers: Processes at a time.
        kills: How many processes are killed, or harmed in their start-up.
        gap: Seconds between two kills, in the mean.
        seed: Of all that is random here.
        early: Seconds after its start in which a process is harmed; if 0, they are killed once two have scored a trial.
    """
    chance, began = random.Random(seed), time.monotonic()
    harm = Harm(chance, kills if early else 0, early)
    living: set[int] = set()
    crashes, ended, killed, next_kill, begun = 0, 0, 0, 0.0, False

    def spawn() -> None:
        pid = os.fork()
        if pid == 0:
            work(name, url, trials)
        living.add(pid)
        harm.plan(pid)

    AT_WORK.mkdir()
    checkpoint_writer.FIRST = 0  # few processes here live for a minute
    for _ in range(workers):
        spawn()
    while living:
        time.sleep(0.005)
        for pid in list(living):
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                living.remove(pid)
                ended += status == 0
                crashes += os.WIFEXITED(status) and status != 0
                if status != 0:
                    spawn()
        harm.strike(living)
        # Two are enough: in a round, others may find no trial that is free.
        begun = begun or sum((AT_WORK / str(pid)).exists() for pid in living) >= min(2, workers)
        if not early and killed < kills and time.monotonic() > next_kill and begun and not ended:
            os.kill(chance.choice(sorted(living)), signal.SIGKILL)
            killed += 1
            next_kill = time.monotonic() + chance.expovariate(1 / gap)
        if crashes > workers:
            for pid in living:
                os.kill(pid, signal.SIGKILL)
            raise SystemExit("the workers crash")
    study = optuna.load_study(study_name="storm", storage=backends.connect(url))
    return described(study, trials) | {
        "kills": killed,
        "harm": harm.done,
        "crashes": crashes,
        "seconds": round(time.monotonic() - began, 1),
    }


def starts(name: str, url: str, count: int, seed: int, **given: Any) -> dict[str, Any]:
    """Begin a study in so many new storages under fire, and return what is to be said of all together."""
    found = []
    for start in range(count):
        Path(f"start{start}").mkdir()
        os.chdir(f"start{start}")  # a file of a relative URL is a new one here
        found.append(storm(name, in_new_schema(url, f"start{start}"), seed=seed + start, early=EARLY_WINDOW, **given))
        os.chdir("..")
    keys = ("lost", "duplicated", "stuck", "crashes")
    harm: collections.Counter[str] = sum((one["harm"] for one in found), collections.Counter())
    tables = sorted({one["table"] for one in found})
    return {key: sum(one[key] for one in found) for key in keys} | {"harm": harm, "tables": tables}


def in_new_schema(url: str, schema: str) -> str:
    """Return the URL of a new schema, without tables, of a database; a file's as it is."""
    if not url.startswith("postgres"):
        return url
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}".encode())
    return f"{url}?options=-csearch_path%3D{schema}"


def described(study: optuna.Study, trials: int) -> dict[str, Any]:
    """Return the counts of a study, and the digest of its table: parameters, values, curves."""
    rows = study.get_trials(deepcopy=False)
    ended = [row for row in rows if row.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    points = collections.Counter(json.dumps(row.params, sort_keys=True) for row in ended)
    table = [
        (row.number, row.state.name, sorted(row.params.items()), row.value, sorted(row.intermediate_values.items()))
        for row in rows
    ]
    return {
        "rows": len(rows),
        "lost": trials - len(ended),
        "duplicated": sum(points.values()) - len(points),
        "stuck": sum(not row.state.is_finished() for row in rows),
        "adopted": sum("hpo:attempt" in row.system_attrs for row in rows),
        "states": collections.Counter(row.state.name for row in rows),
        "table": hashlib.sha256(json.dumps(table).encode()).hexdigest(),
    }


PAUSE = 0.06
EARLY_WINDOW = 0.4  # seconds that a fork takes to open a storage and a study while others do

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--study", choices=[*SETTINGS, "finetune"], default="random")
    parser.add_argument("--trials", type=int, default=120)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--gap", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause", type=float, default=PAUSE)
    parser.add_argument("--starts", type=int, default=0)
    given = vars(parser.parse_args())
    PAUSE = given.pop("pause")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    import_early(*(TRAINING if given["study"] == "finetune" else []))
    count, study = given.pop("starts"), given.pop("study")
    print(json.dumps(starts(study, count=count, **given) if count else storm(study, **given)))
