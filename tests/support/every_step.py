"""A process is killed before everything that it writes: a statement, a commit, a record of a journal, a file.

    python tests/support/every_step.py sqlite:///a.db

Each run is killed at another point, with a storage of its own, so that the making of tables is among them; then a
second process goes on. Prints how many points there were.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
import storm
import torch  # before the forks

from hpo.config.study_spec import build
from hpo.core.interrupts import StopRequest
from hpo.core.trainer import Evaluation, TrialCheckpoint, TrialSpec
from hpo.execution import checkpoint_writer
from hpo.execution.best_weights import Weights
from hpo.execution.checkpoint_store import Checkpoints
from hpo.execution.runner import Runner
from hpo.execution.study_setup import open_study, plan
from hpo.search.stopping import Rules
from hpo.storage import backends, journal
from hpo.storage.trial_locks import starting

TRIALS, SEGMENTS = 3, 3
SETTINGS = {"objective": "some:where", "space": {"x": {"low": 0.0, "high": 1.0}}, "trials": TRIALS, "round_size": 3}


class Adder:
    """An array of two slots whose trials add up a number, and that can be kept."""

    def __init__(self) -> None:
        self.slots, self.segment, self.horizon, self.notes, self.stop_request = 2, 1, SEGMENTS, (), StopRequest()
        self.facts: Mapping[str, Any] = {}
        self._held: dict[int, tuple[TrialSpec, int, torch.Tensor]] = {}

    def resume_with(self, facts: Mapping[str, Any]) -> None:
        """Nothing is chosen anew."""

    def load(self, slot: int, trial: TrialSpec) -> None:
        """Begin at nothing, or where it was."""
        kept = trial.checkpoint
        begin = (0, torch.zeros(())) if kept is None else (kept.state["step"], kept.tensors["sum"])
        self._held[slot] = (trial, *begin)

    def advance(self) -> dict[int, Evaluation | Exception]:
        """Add, and evaluate."""
        outcomes: dict[int, Evaluation | Exception] = {}
        for slot, (trial, step, total) in self._held.items():
            total = total + trial.params["x"] * (trial.seed % 7 + step)
            self._held[slot] = (trial, step + 1, total)
            outcomes[slot] = Evaluation(float(total), at=step + 1, last=step + 1 == SEGMENTS)
        return outcomes

    def save(self, slot: int) -> TrialCheckpoint:
        """Keep the sum."""
        trial, step, total = self._held[slot]
        return TrialCheckpoint(trial.number, {"step": step}, {"sum": total})

    def pause(self, slot: int) -> bool:
        """Hold what is in slots only."""
        return False

    def save_weights(self, slot: int, folder: Path) -> bool:
        """Write the sum."""
        folder.mkdir(parents=True)
        (folder / "sum").write_text(repr(self._held[slot][2].item()))
        return True

    def unload(self, slot: int) -> None:
        """Empty a slot."""
        self._held.pop(slot, None)


def run(name: str, url: str | None) -> optuna.Study:
    """Run a study, or go on with it."""
    study = build({"name": name, "pruner": {"name": "asha", "reduction_factor": 2}, **SETTINGS}, "test", Path())
    kept = optuna.storages.InMemoryStorage() if url is None else backends.connect(url)
    with starting(url, name):
        opened = open_study(study, kept, {})
        plan(opened, study)
    opened.pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    rules = Rules(TRIALS, round_size=3)
    checkpoints = Checkpoints(Path("runs") / name / "checkpoints", name)
    weights = Weights(Path("runs") / name / "trials", 1, -1)
    Runner(opened, study.space, Adder(), rules, None, url, weights, checkpoints).run()
    return optuna.load_study(study_name=name, storage=kept)


def killed_at(point: int, name: str, url: str) -> bool:
    """Run a study in a fork that is killed before something that it writes; return whether it was."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1] != 0
    calls = 0

    def step() -> None:
        nonlocal calls
        calls += 1
        if calls == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            step()
            return function(*arguments, **named)

        return call

    def appended(file: journal._JournalFile, records: bytes) -> None:
        for record in records.splitlines(keepends=True):  # a kill may leave some of several
            step()
            append(file, record)

    def executes(connection: sqlalchemy.Connection, cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().startswith(("INSERT", "UPDATE", "CREATE")):
            step()
            connection.info["written"] = True

    def commits(connection: sqlalchemy.Connection) -> None:
        if connection.info.pop("written", False):
            step()

    append = journal._JournalFile._append
    journal._JournalFile._append = appended  # type: ignore[method-assign]
    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", executes)
    sqlalchemy.event.listen(sqlalchemy.Engine, "commit", commits)
    checkpoint_writer.FIRST = 0  # or there would be none to kill it at
    os.replace, Path.rename = counted(os.replace), counted(Path.rename)  # type: ignore[assignment, method-assign]
    run(name, url)
    os._exit(0)


def table(study: optuna.Study, name: str) -> str:
    """Return the digest of the table, and of the weights that are kept."""
    kept = sorted((path.parent.name, path.read_text()) for path in Path("runs", name, "trials").glob("*/sum"))
    return json.dumps([storm.described(study, TRIALS)["table"], kept])


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storm.import_early()
    undisturbed = table(run("undisturbed", None), "undisturbed")
    found: list[bool] = []
    while not found or found[-1]:
        name = f"at{len(found) + 1}"
        place = sys.argv[1].replace("///", f"///{name}-")
        found.append(killed_at(len(found) + 1, name, place))
        pid = os.fork()
        if pid == 0:
            told = table(run(name, place), name)
            if told != undisturbed:
                print(name, told, undisturbed, file=sys.stderr)
            os._exit(told != undisturbed)
        if os.waitpid(pid, 0)[1] != 0:
            sys.exit(f"killed at point {len(found)}, the study came to another end")
    print(len(found) - 1)
