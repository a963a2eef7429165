from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState

from hpo.config.schema import RESUMABLE
from hpo.config.study_spec import StudySpec, build
from hpo.core.errors import StudyError
from hpo.execution.study_setup import (
    DEFAULT_TRIALS,
    as_chosen,
    load_by_name,
    open_study,
    plan,
    planned_rows,
    resumed,
    store_config,
)
from hpo.search.samplers import TrialSeededSampler
from hpo.space.parser import parse
from hpo.storage import backends

ROWS = " (a hash of all rows: a file has changed, or which rows are set aside)"
FACTS = {"data": "abc", "weights": {"model": "1", "head": "2"}}


def study(**changes: Any) -> StudySpec:
    raw = {"name": "s", "model": "m", "data": {"train": "rows.csv"}, "space": "bert", **changes}
    return build(raw, "study.yaml", Path())


def custom(space: Mapping[str, Any], **changes: Any) -> StudySpec:
    return build({"name": "s", "objective": "t:f", "space": space, **changes}, "study.yaml", Path())


@pytest.fixture(params=["memory", "sqlite", "journal"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> BaseStorage:
    places: dict[str, Callable[[], BaseStorage]] = {
        "memory": InMemoryStorage,
        "sqlite": lambda: backends.connect(f"sqlite:///{tmp_path}/a.db"),
        "journal": lambda: backends.connect(f"journal:///{tmp_path}/a.log"),
    }
    return places[request.param]()


# ---------------------------------------------------------------- opening


def test_a_study_is_created_once_and_then_resumed(storage: BaseStorage) -> None:
    first = open_study(study(metric="loss"), storage, FACTS)
    first.add_trial(optuna.create_trial(value=0.5))
    again = open_study(study(metric="loss"), storage, FACTS)
    assert again.direction == optuna.study.StudyDirection.MINIMIZE
    assert [trial.value for trial in again.trials] == [0.5]
    assert again.user_attrs["config"] == study(metric="loss").to_dict()


CHANGES: list[tuple[dict[str, Any], Mapping[str, Any], str]] = [
    ({"seed": 1}, FACTS, "seed: was 0, is 1"),
    ({"model": "n"}, FACTS, "model: was 'm', is 'n'"),
    ({"data": {"train": "rows.csv", "rows": 50}}, FACTS, "data.rows: was None, is 50"),
    ({"evaluations_per_epoch": 5}, FACTS, "evaluations_per_epoch: was 2, is 5"),
    ({"micro_batch": 8}, FACTS, "micro_batch: was 64, is 8"),
    ({}, {**FACTS, "data": "abd"}, "data: was 'abc', is 'abd'"),
    ({}, {**FACTS, "weights": {"model": "1", "head": "3"}}, "weights.head: was '2', is '3'"),
    ({}, {**FACTS, "more": 1}, "more: was None, is 1"),
    ({}, {"weights": FACTS["weights"]}, "data: was 'abc', is None"),
]


@pytest.mark.parametrize(("change", "facts", "said"), CHANGES)
def test_a_study_begun_with_other_settings_is_refused_with_what_changed(
    change: dict[str, Any], facts: Mapping[str, Any], said: str
) -> None:
    storage = InMemoryStorage()
    before = open_study(study(), storage, FACTS).user_attrs
    with pytest.raises(StudyError) as caught:
        open_study(study(**change), storage, facts)
    lines = [line.strip().removesuffix(ROWS) for line in str(caught.value).splitlines()[1:-1]]
    assert lines == [said]
    assert (ROWS in str(caught.value)) == said.startswith("data: was")
    assert "--set name=s-2" in str(caught.value)
    assert optuna.load_study(study_name="s", storage=storage).user_attrs == before


def test_a_change_of_the_space_is_refused_wherever_it_is() -> None:
    storage = InMemoryStorage()
    open_study(study(), storage, FACTS)
    with pytest.raises(StudyError, match=r"space\.parameters\.learning_rate"):
        open_study(study(space="roberta"), storage, FACTS)


@pytest.mark.parametrize(
    "change",
    [
        {"trials": 50},
        {"timeout": 5},
        {"slots": 4},
        {"shards": 2},  # and what it comes to is a fact
        {"max_consecutive_failures": 9},
        {"device": "cpu"},
        {"storage": "sqlite:///other.db"},
        {"sampler": "random"},
        {"pruner": "none"},
        {"checksums": {"a": "b"}},
    ],
)
def test_what_says_how_much_and_where_may_change(change: dict[str, Any]) -> None:
    storage = InMemoryStorage()
    open_study(study(), storage, FACTS)
    opened = open_study(study(**change), storage, FACTS)
    plan(opened, study(**change))
    assert store_config(opened, study(**change)) == []
    assert opened.user_attrs["config"] == study(**change).to_dict()
    assert set(change) <= RESUMABLE | {"checksums"}


def test_another_sampler_is_said_and_kept_only_if_it_draws_anything() -> None:
    opened = open_study(study(trials=2), InMemoryStorage(), FACTS)
    plan(opened, study(trials=2))
    opened.tell(opened.ask(), 0.5)
    said = store_config(opened, study(trials=2, sampler="random", pruner="median"))
    assert said == ['sampler: was "tpe" for the 1 trials that have ended, is now "random"']
    opened.tell(opened.ask(), 0.5)
    assert store_config(opened, study(trials=2, pruner="asha")) == []
    assert opened.user_attrs["config"] == study(trials=2, sampler="random", pruner="median").to_dict()


def test_facts_are_compared_as_the_storage_keeps_them(storage: BaseStorage) -> None:
    facts = {"labels": ("neg", "pos"), "counts": {"a": [1, (2, 3)]}}  # tuples come back as lists
    open_study(study(), storage, facts)
    open_study(study(), storage, facts)


def test_a_study_that_hpo_did_not_create_is_left_alone(storage: BaseStorage) -> None:
    optuna.create_study(storage=storage, study_name="s").add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(StudyError, match="that hpo did not create; choose another name"):
        open_study(study(), storage, FACTS)


def test_a_study_whose_creation_was_cut_short_is_taken_over(storage: BaseStorage) -> None:
    optuna.create_study(storage=storage, study_name="s")
    assert open_study(study(), storage, FACTS).user_attrs["fingerprint"]["facts"] == FACTS


def test_a_study_is_loaded_by_name_or_the_names_there_are_listed(storage: BaseStorage) -> None:
    with pytest.raises(StudyError, match=r"no study 'x' in here \(it has none\)\. Run it first: hpo run FILE"):
        load_by_name("x", storage, "here")
    open_study(study(name="b"), storage, FACTS)
    open_study(study(name="a"), storage, FACTS)
    assert load_by_name("b", storage, "here").study_name == "b"
    with pytest.raises(StudyError, match=r"it has a, b"):
        load_by_name("x", storage, "here")


# ---------------------------------------------------------------- rows

GRID = {"sampler": "grid"}


@pytest.mark.parametrize(
    ("planned", "rows", "budget"),
    [
        (study(space="default"), DEFAULT_TRIALS, DEFAULT_TRIALS),
        (study(space="default", trials=7), 7, 7),
        (study(space="default", trials=1), 1, 1),
        (study(space="default", trials=7, baseline=False), 7, 7),
        (study(trials=50), 18, 50),  # 18 points, one of which is the published default
        (study(space="electra", trials=50), 4, 50),
        (study(space={"epochs": [2, 4], "learning_rate": [1e-5, 5e-5]}, trials=50), 4, 50),
        (study(space={"epochs": {"low": 5, "high": 6}}, trials=50), 3, 50),  # the default of 3 is outside
        (study(**GRID), 18, 18),
        (study(**GRID, baseline=False), 18, 18),
        (study(space={"epochs": {"low": 5, "high": 6}}, **GRID), 3, 3),
        (study(**GRID, trials=5), 5, 5),
        (study(**GRID, trials=1), 1, 1),
        (study(**GRID, trials=99), 18, 99),
        (custom({"x": [1, 2, 3]}, **GRID), 3, 3),
        (custom({"x": {"low": 0.0, "high": 1.0}}), DEFAULT_TRIALS, DEFAULT_TRIALS),
    ],
)
def test_a_budget_counts_all_rows(planned: StudySpec, rows: int, budget: int) -> None:
    found, wanted = planned_rows(planned)
    assert (len(found), wanted) == (rows, budget)
    baselines = [i for i, (_, attrs) in enumerate(found) if attrs.get("baseline")]
    assert baselines == ([0] if planned.config.baseline and planned.space.baseline else [])


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "deberta", "small_data"])
@pytest.mark.parametrize("baseline", [True, False])
def test_a_grid_has_each_point_once(name: str, baseline: bool) -> None:
    planned = study(space=name, baseline=baseline, **GRID)
    points = [tuple(sorted(params.items())) for params, _ in planned_rows(planned)[0]]
    grid = planned.space.grid()
    assert grid is not None
    assert len(set(points)) == len(points)
    assert set(points) == {tuple(sorted(point.items())) for point in grid}


def test_a_smaller_grid_is_a_seeded_subset_that_a_larger_budget_adds_to() -> None:
    whole = [params for params, _ in planned_rows(study(**GRID))[0]]
    for count in range(1, 19):
        assert [params for params, _ in planned_rows(study(**GRID, trials=count))[0]] == whole[:count]
    other = [params for params, _ in planned_rows(study(**GRID, seed=1))[0]]
    assert other != whole
    assert other[0] == whole[0] == study().space.first_trial()


@pytest.mark.parametrize("name", ["bert", "default"])
def test_planning_again_adds_nothing_and_a_larger_budget_adds_the_rest(storage: BaseStorage, name: str) -> None:
    sampler = "grid" if name == "bert" else "tpe"
    opened = open_study(study(space=name, sampler=sampler, trials=5), storage, FACTS)
    for count, rows in ((5, 5), (5, 5), (3, 5), (9, 9)):
        assert plan(opened, study(space=name, sampler=sampler, trials=count)) == count
        assert len(opened.trials) == rows
    assert {trial.state for trial in opened.trials} == {TrialState.WAITING}
    fixed = [trial.system_attrs["fixed_params"] for trial in opened.trials]
    assert fixed == [params for params, _ in planned_rows(study(space=name, sampler=sampler, trials=9))[0]]
    assert opened.trials[0].user_attrs == {"baseline": True}
    assert not any(trial.user_attrs for trial in opened.trials[1:])


def test_a_study_that_turns_to_a_grid_still_gets_each_point_once() -> None:
    opened = open_study(study(trials=4), InMemoryStorage(), FACTS)
    plan(opened, study(trials=4))
    for _ in range(4):
        trial = opened.ask()
        study().space.suggest(trial)
        opened.tell(trial, 0.5)
    budget = plan(opened, study(**GRID))
    points = [t.params or t.system_attrs["fixed_params"] for t in opened.trials]
    assert len(opened.trials) == budget
    assert len({tuple(sorted(point.items())) for point in points}) == 18


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_published_configurations_are_tried_first_and_once(sampler: str, storage: BaseStorage) -> None:
    space = {
        "parameters": {"x": [1, 2, 3], "y": ["a", "b"]},
        "baseline": {"x": 2, "y": "b"},
        "configurations": [{"x": 3}, {"y": "a"}, {"x": 2}, {"x": 3, "y": "b"}],
    }
    spec = custom(space, sampler=sampler, trials=6)
    planned, _ = planned_rows(spec)
    assert [params for params, _ in planned[:3]] == [{"x": 2, "y": "b"}, {"x": 3, "y": "b"}, {"x": 2, "y": "a"}]
    assert planned[0][1] == {"baseline": True}
    given = [frozenset(params.items()) for params, _ in planned if params]
    assert len(set(given)) == len(given) == (6 if sampler == "grid" else 3)
    opened = open_study(spec, storage, {})
    for _ in range(2):
        plan(opened, spec)
    assert len(opened.get_trials()) == 6
    assert parse(spec.space.to_dict()) == spec.space


# ---------------------------------------------------------------- auto

OPEN = {"x": {"low": 0.0, "high": 1.0}}
AUTO = {"sampler": "auto", "pruner": "auto"}


def used(spec: StudySpec, opened: optuna.Study) -> tuple[Any, Any, int | None]:
    config = as_chosen(spec, opened).config
    return config.sampler, config.pruner, config.round_size


def test_what_auto_chose_stays_when_the_budget_grows(storage: BaseStorage) -> None:
    few, more = (custom(OPEN, trials=trials, **AUTO) for trials in (20, 40))
    opened = open_study(few, storage, {})
    assert used(few, opened) == ("cross_entropy", "two_rungs", 20)
    assert used(more, open_study(more, storage, {})) == ("cross_entropy", "two_rungs", 20)
    plan(opened, as_chosen(few, opened))
    found = resumed(few, storage, {})
    assert found is not None
    assert isinstance(found.sampler, TrialSeededSampler)
    assert found.sampler.name == "cross_entropy"
    assert opened.user_attrs["config"]["sampler"] == "auto"


def test_named_ones_are_used_as_they_are_and_auto_is_chosen_anew_beside_them(storage: BaseStorage) -> None:
    both = custom(OPEN, trials=20, **AUTO)
    opened = open_study(both, storage, {})
    named = custom(OPEN, trials=20, sampler="random", pruner="asha")
    assert as_chosen(named, opened) is named
    one = custom(OPEN, trials=20, sampler="random", pruner="auto")
    assert used(one, open_study(one, storage, {})) == ("random", "two_rungs", None)


def test_a_study_that_turns_to_auto_stores_its_choice(storage: BaseStorage) -> None:
    named, both = custom(OPEN, trials=20), custom(OPEN, trials=20, **AUTO)
    plan(open_study(named, storage, {}), named)
    assert resumed(both, storage, {}) is None
    assert "auto" in open_study(both, storage, {}).user_attrs
    assert resumed(both, storage, {}) is not None


def test_auto_plans_every_point_of_a_small_space() -> None:
    planned, budget = planned_rows(custom({"x": [1, 2, 3], "y": [1, 2]}, trials=8, baseline=False, **AUTO))
    assert budget == 8
    assert sorted(tuple(params.values()) for params, _ in planned) == [(x, y) for x in (1, 2, 3) for y in (1, 2)]
