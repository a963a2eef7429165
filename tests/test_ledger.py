from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from hpo import storage as storages
from hpo.ledger import Ledger, copied
from hpo.objective import GeneratorArray
from hpo.runner import Rules, Runner
from hpo.samplers import TrialSeededSampler
from hpo.space import parse

SPACE = parse({"x": {"low": 0.0, "high": 1.0}, "kind": ["a", "b"], "n": {"low": 1, "high": 9}})


@pytest.fixture(params=["sqlite:///{}/a.db", "journal:///{}/a.log"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> BaseStorage:
    return storages.connect(request.param.format(tmp_path))


def open_in(storage: BaseStorage) -> optuna.Study:
    sampler = TrialSeededSampler("tpe", {"n_startup_trials": 2}, SPACE, 0)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=1)
    return optuna.create_study(
        storage=storage, study_name="s", direction="maximize", load_if_exists=True, sampler=sampler, pruner=pruner
    )


def table(study: optuna.Study) -> list[Any]:
    """All of a row but the moments of its start and end, which each storage takes itself."""

    def of(row: FrozenTrial) -> tuple[Any, ...]:
        attrs = row.user_attrs | {"seconds": None}
        return row.number, row.state, row.params, row.values, row.intermediate_values, attrs, row.distributions

    return [of(row) for row in study.get_trials(deepcopy=False)]


def objective(params: Any) -> Any:
    if params["n"] == 5:
        raise ValueError("five")
    for step in range(4):
        yield params["x"] * step


def run(study: optuna.Study, rows: int) -> None:
    for _ in range(rows):
        study.enqueue_trial({})
    Runner(study, SPACE, GeneratorArray(objective, 2), Rules(rows, max_consecutive_failures=99)).run()


def test_the_storage_has_what_the_copy_has(kept: BaseStorage) -> None:
    study = open_in(kept)
    copy = copied(study)
    run(copy, 12)
    copy.set_user_attr("said", {"a": [1]})
    assert table(copy) == table(study)
    assert {row.state for row in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    assert [row.system_attrs for row in copy.trials] == [row.system_attrs for row in study.trials]
    assert study.user_attrs == {"said": {"a": [1]}}


def test_a_run_through_the_copy_is_the_run_without_it(kept: BaseStorage) -> None:
    alone = open_in(InMemoryStorage())
    run(alone, 12)
    study = open_in(kept)
    run(copied(study), 12)
    assert table(study) == table(alone)


def test_a_copy_begins_with_the_rows_that_are_there(kept: BaseStorage) -> None:
    study = open_in(kept)
    study.set_user_attr("mine", 1)
    run(copied(study), 3)
    again = copied(open_in(kept))
    assert table(again) == table(study)
    assert again.user_attrs == {"mine": 1}
    again.enqueue_trial({"x": 0.5})
    assert again.ask().number == 3
    assert study.get_trials(deepcopy=False)[3].state == TrialState.RUNNING


def test_the_rows_are_read_once(kept: BaseStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    study = open_in(kept)
    copy = copied(study)
    asked = []
    for name in ("get_all_trials", "get_trial"):
        monkeypatch.setattr(study._storage, name, lambda *args, **kwargs: asked.append(args))
    run(copy, 6)
    assert asked == []


def test_a_trial_that_somebody_else_has_is_not_given_out(kept: BaseStorage) -> None:
    study = open_in(kept)
    study.enqueue_trial({})
    one, other = Ledger(study), Ledger(study)
    assert one.set_trial_state_values(0, TrialState.RUNNING)
    assert not other.set_trial_state_values(0, TrialState.RUNNING)


def test_a_study_in_memory_is_its_own_copy() -> None:
    study = open_in(InMemoryStorage())
    assert copied(study) is study


def test_an_interrupt_waits_for_a_write_to_be_whole(kept: BaseStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    study = open_in(kept)
    copy = copied(study)
    write = study._storage.set_study_user_attr

    def interrupted(*args: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        write(*args)

    monkeypatch.setattr(study._storage, "set_study_user_attr", interrupted)
    with pytest.raises(KeyboardInterrupt):
        copy.set_user_attr("said", 1)
    assert study.user_attrs == copy.user_attrs == {"said": 1}
