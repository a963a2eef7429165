"""A kill storm: many processes run one study, and are killed at random moments; nothing may be lost.

    python tests/storm.py sqlite:////tmp/a.db --trials 120 --workers 8 --kills 30

Prints what became of the study as JSON. Full size is `--trials 1000 --kills 200`.
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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

import hpo
from hpo import checkpoint, tune
from hpo import config as configs
from hpo import storage as storages
from hpo.errors import HpoError
from hpo.watcher import Silent

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
    "rounds": {"space": SPACE, "sampler": "tpe", "pruner": "asha", "round_size": 12},
}


def objective(params: Mapping[str, Any]) -> Iterator[float]:
    """Yield a curve that is a function of the parameters, in a time that is not."""
    base = float(params["x"]) + len(str(params["kind"])) + 0.1 * params.get("depth", 0)
    for step in range(1, STEPS + 1):
        time.sleep(random.random() * PAUSE)
        yield base + params.get("rate", params.get("y", 0)) * step


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
            return tune.run(configs.load(Path("finetune.yaml"), {"trials": trials}), url, AtWork()).study
        settings = {**SETTINGS[name], "trials": trials, "seed": 7}
        return hpo.optimize(objective, name="storm", storage=url, watch=AtWork(), **settings)


EARLY = ["alembic.command", "alembic.config", "alembic.migration", "alembic.script", "optuna.storages._rdb.models"]
EARLY += ["psycopg", "sqlalchemy.dialects.postgresql.psycopg", "sqlalchemy.dialects.sqlite"]
TRAINING = ["hpo.finetune.array", "sklearn.metrics", "scipy.stats", "transformers.models.bert.modeling_bert"]


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


def storm(name: str, url: str, trials: int, workers: int, kills: int, gap: float, seed: int) -> dict[str, Any]:
    """Run the study to its end under fire, and return what is to be said of it."""
    chance, began = random.Random(seed), time.monotonic()
    living: set[int] = set()
    crashes, ended, killed, next_kill, begun = 0, 0, 0, 0.0, False

    def spawn() -> None:
        pid = os.fork()
        if pid == 0:
            work(name, url, trials)
        living.add(pid)

    AT_WORK.mkdir()
    checkpoint.FIRST = 0  # few processes here live for a minute
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
        begun = begun or all((AT_WORK / str(pid)).exists() for pid in living)
        if killed < kills and time.monotonic() > next_kill and begun and not ended:
            os.kill(chance.choice(sorted(living)), signal.SIGKILL)
            killed += 1
            next_kill = time.monotonic() + chance.expovariate(1 / gap)
        if crashes > workers:
            for pid in living:
                os.kill(pid, signal.SIGKILL)
            raise SystemExit("the workers crash")
    study = optuna.load_study(study_name="storm", storage=storages.connect(url))
    return described(study, trials) | {
        "kills": killed,
        "crashes": crashes,
        "seconds": round(time.monotonic() - began, 1),
    }


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
    given = vars(parser.parse_args())
    PAUSE = given.pop("pause")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    import_early(*(TRAINING if given["study"] == "finetune" else []))
    print(json.dumps(storm(given.pop("study"), **given)))
