"""A study of 5,000 trials: what commands read, make and write is limited, and is far below the limits of time."""

from __future__ import annotations

import importlib
import shutil
import time
import tracemalloc
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from hpo.analysis import plots
from hpo.config import study_spec
from hpo.execution import run_study
from hpo.storage import backends
from hpo.storage.snapshot import read
from hpo.storage.table_writer import TableWriter

TRIALS = 5000


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """The benchmark that makes large studies."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        return importlib.import_module("large_study")


@pytest.fixture(scope="module")
def folder(bench: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a large study in SQLite."""
    made = tmp_path_factory.mktemp("large")
    bench.make(made, TRIALS)
    return made


def test_it_has_trials_of_every_kind_that_ends(folder: Path) -> None:
    results = read(optuna.load_study(study_name="large", storage=backends.connect(f"sqlite:///{folder}/hpo.db")))
    assert [trial.number for trial in results.trials] == list(range(TRIALS))
    assert min(results.counts[state] for state in ("complete", "pruned", "fail")) > 50
    assert {len(trial.params) for trial in results.trials} == {5}
    assert {len(trial.intermediate_values) for trial in results.complete} == {10}
    assert results.baseline is not None
    assert results.baseline.state == TrialState.COMPLETE


def test_it_is_read_with_one_select_a_table(folder: Path) -> None:
    storage, statements = backends.connect(f"sqlite:///{folder}/hpo.db"), []
    sqlalchemy.event.listen(
        storage.engine, "before_cursor_execute", lambda _, __, statement, *___: statements.append(statement)
    )
    assert len(storage._get_trials(1, None, set(), -1)) == TRIALS
    selects = [statement for statement in statements if statement.startswith("SELECT")]
    assert len(selects) == 6 + 1  # the last one counts the trials


def test_what_is_read_takes_less_than_6_kb_a_trial(folder: Path) -> None:
    storage = backends.connect(f"sqlite:///{folder}/hpo.db")
    tracemalloc.start()
    try:
        trials = storage._get_trials(1, None, set(), -1)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most / len(trials) < 6000  # 100,000 trials in less than 1 GB, beside what is imported


def test_it_is_read_faster_than_optuna_reads_it(folder: Path) -> None:
    kept = backends.connect(f"sqlite:///{folder}/hpo.db")

    def seconds(read: object) -> float:
        began = time.process_time()
        assert callable(read)
        assert len(read(kept, 1, None, set(), -1)) == TRIALS
        return time.process_time() - began

    ours, theirs = (min(seconds(one._get_trials) for _ in range(2)) for one in (type(kept), RDBStorage))
    assert 2 * ours < theirs  # measured: more than ten times


def test_a_study_that_is_resumed_reads_its_ended_trials_once(
    bench: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, counts = shutil.copytree(folder, tmp_path / "copy"), []
    read_rows = TableWriter.rows

    def counted(self: TableWriter, *arguments: Any) -> list[FrozenTrial]:
        rows = read_rows(self, *arguments)
        counts.append(len(rows))
        return rows

    monkeypatch.setattr(TableWriter, "rows", counted)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    url = f"sqlite:///{folder}/hpo.db"
    spec = study_spec.load(folder / "large.yaml", {"trials": TRIALS + 3})
    opened, budget = run_study.open_planned(spec, backends.connect(url), url, run_study.open_array(spec), None)
    assert len(opened.get_trials(deepcopy=False)) == budget == TRIALS + 3
    assert sum(counts) < TRIALS + 20


def test_the_history_of_a_sample_is_drawn_from_few_trials(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = read(optuna.load_study(study_name="large", storage=backends.connect(f"sqlite:///{folder}/hpo.db")))
    given: list[int] = []
    draw = plots.visualization.plot_optimization_history

    def counted(study: optuna.Study, **options: Any) -> Any:
        given.append(len(study.get_trials()))
        return draw(study, **options)

    monkeypatch.setattr(plots.visualization, "plot_optimization_history", counted)
    sampled = plots.history(results)
    assert max(given) < plots.POINTS + 100
    monkeypatch.setattr(plots, "_shown_in_history", lambda results, drawn: results.trials)
    assert sampled.to_dict() == plots.history(results).to_dict()


@pytest.mark.slow
def test_commands_end_in_time(bench: ModuleType, folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(folder, tmp_path / "copy")  # one of the commands adds trials
    limits = {"best": 20, "show": 20, "list": 20, "trials": 30, "report": 60, "going on": 40, "a trial": 10}
    took = bench.measured(folder, TRIALS)
    assert took.keys() == limits.keys()
    assert {command: cost.seconds for command, cost in took.items() if cost.seconds > limits[command]} == {}
    assert {command: cost.megabytes for command, cost in took.items() if cost.megabytes > 700} == {}
    report = (folder / "runs" / "large" / "report.html").read_bytes()
    assert len(report) < 5e6
    assert b"1,000 of 5,005 trials" in report
