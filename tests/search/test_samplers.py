from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.testing import pytest_samplers as suites

from hpo.core.errors import MissingExtraError
from hpo.search.samplers import DRAWN_BY, MAX_REDRAWS, RANDOM, SAMPLERS, TrialSeededSampler, factory, make
from hpo.space.parser import parse
from hpo.space.search_space import SearchSpace

RANGES = parse({"x": {"low": 0.0, "high": 1.0}, "lr": {"low": 1e-5, "high": 1e-1, "log": True}})
CONDITIONAL = parse(
    {
        "lr": {"low": 1e-5, "high": 1e-1, "log": True},
        "schedule": ["linear", "restarts", "poly"],
        "cycles": {"low": 1, "high": 9, "when": {"schedule": "restarts"}},
        "power": {"low": 0.5, "high": 3.0, "when": {"schedule": "poly"}},
        "single": [7],
    }
)
SMALL = parse({"a": [1, 2, 3], "b": ["x", "y"]})

# Classes of Optuna that work with nothing but a seed, on one objective.
CLASSES = ["TPESampler", "RandomSampler", "QMCSampler", "NSGAIISampler", "NSGAIIISampler", "BruteForceSampler"]


def value(params: dict[str, Any]) -> float:
    return sum(float(v) if isinstance(v, int | float) else len(v) for v in params.values())


def run(study: optuna.Study, space: SearchSpace, count: int) -> list[dict[str, Any]]:
    for _ in range(count):
        trial = study.ask()
        study.tell(trial, value(space.suggest(trial)))
    return [trial.params for trial in study.trials]


def opened(name: str, space: SearchSpace, seed: int = 0, storage: Any = None, **arguments: Any) -> optuna.Study:
    sampler = TrialSeededSampler(name, arguments, space, seed)
    return optuna.create_study(storage=storage, study_name="s", load_if_exists=True, sampler=sampler)


FINITE_ARGUMENTS: dict[str, dict[str, Any]] = {"tpe": {"n_startup_trials": 3}, "gp": {"n_startup_trials": 3}}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_gives_the_same_trials_for_the_same_seed(name: str) -> None:
    arguments = FINITE_ARGUMENTS.get(name, {})
    once = run(opened(name, CONDITIONAL, 1, **arguments), CONDITIONAL, 7)
    assert once == run(opened(name, CONDITIONAL, 1, **arguments), CONDITIONAL, 7)
    if name != "qmc":  # its seed sets the first trial; the rest of the sequence is fixed unless it is scrambled
        assert once != run(opened(name, CONDITIONAL, 2, **arguments), CONDITIONAL, 7)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_resumed_study_goes_on_as_an_uninterrupted_one(name: str) -> None:
    whole = run(opened(name, RANGES, **FINITE_ARGUMENTS.get(name, {})), RANGES, 8)
    storage = optuna.storages.InMemoryStorage()
    run(opened(name, RANGES, storage=storage, **FINITE_ARGUMENTS.get(name, {})), RANGES, 5)
    resumed = run(opened(name, RANGES, storage=storage, **FINITE_ARGUMENTS.get(name, {})), RANGES, 3)
    assert resumed == whole
    assert len({tuple(params.items()) for params in resumed}) == 8


@pytest.mark.parametrize("name", [*SAMPLERS, *(name for name in CLASSES if name != "BruteForceSampler")])
def test_inactive_parameters_are_never_drawn_and_active_ones_are_of_the_space(name: str) -> None:
    for params in run(opened(name, CONDITIONAL, **FINITE_ARGUMENTS.get(name, {})), CONDITIONAL, 14):
        assert params.keys() == {n for n in CONDITIONAL.parameters if CONDITIONAL.active(n, params)}
        assert params["single"] == 7
        for name_, distribution in CONDITIONAL.distributions().items():
            assert name_ not in params or distribution._contains(distribution.to_internal_repr(params[name_]))


@pytest.mark.parametrize("name", ["qmc", "random", "tpe"])
def test_a_conditional_parameter_has_a_new_value_in_every_trial(name: str) -> None:
    params = run(opened(name, CONDITIONAL), CONDITIONAL, 30)
    powers = [p["power"] for p in params if "power" in p]
    assert len(powers) > 3
    assert len(set(powers)) == len(powers)


@pytest.mark.parametrize("name", ["random", "tpe", "BruteForceSampler"])
def test_no_point_of_a_small_space_is_repeated_while_others_remain(name: str) -> None:
    points = run(opened(name, SMALL), SMALL, 5)
    assert len({tuple(params.items()) for params in points}) == 5


def test_a_duplicate_is_redrawn_ten_times_and_then_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[tuple[int, int]] = []
    fresh = TrialSeededSampler._fresh

    def counted(self: TrialSeededSampler, number: int, attempt: int) -> BaseSampler:
        attempts.append((number, attempt))
        return fresh(self, number, attempt)

    monkeypatch.setattr(TrialSeededSampler, "_fresh", counted)
    study = opened("random", parse({"a": [1, 2]}))
    run(study, parse({"a": [1, 2]}), 3)
    assert [trial.params["a"] for trial in study.trials][:2] in ([1, 2], [2, 1])
    assert [attempt for number, attempt in attempts if number == 2] == list(range(1 + MAX_REDRAWS))


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("random", {}, [RANDOM] * 6),
        ("tpe", {"n_startup_trials": 4}, [RANDOM] * 4 + ["tpe"] * 2),
        ("gp", {"n_startup_trials": 4}, [RANDOM] * 4 + ["gp"] * 2),
        ("cmaes", {}, [RANDOM] + ["cmaes"] * 5),
        ("qmc", {}, ["qmc"] * 6),
        ("NSGAIISampler", {}, ["NSGAIISampler"] * 6),
    ],
)
def test_a_trial_says_by_what_it_was_drawn(name: str, arguments: dict[str, Any], expected: list[str]) -> None:
    study = opened(name, RANGES, **arguments)
    study.enqueue_trial({"x": 0.5, "lr": 1e-3})
    planned = study.ask()
    RANGES.suggest(planned)
    study.tell(planned, state=optuna.trial.TrialState.FAIL)  # a failed trial is no part of a model
    run(study, RANGES, 6)
    assert [trial.system_attrs.get(DRAWN_BY) for trial in study.trials] == [None, *expected]


def test_what_is_said_to_be_random_is_what_the_random_sampler_would_have_drawn() -> None:
    tpe, other = opened("tpe", RANGES, n_startup_trials=5), opened("tpe", RANGES, n_startup_trials=5)
    run(tpe, RANGES, 9)
    for _ in range(9):  # other scores: only draws with a model may differ
        trial = other.ask()
        other.tell(trial, -value(RANGES.suggest(trial)))
    same = [a.params == b.params for a, b in zip(tpe.trials, other.trials, strict=True)]
    assert same == [trial.system_attrs[DRAWN_BY] == RANDOM for trial in tpe.trials] == [True] * 5 + [False] * 4


def test_enqueued_parameters_are_used_and_do_not_change_other_draws() -> None:
    study = opened("random", CONDITIONAL)
    study.enqueue_trial({"schedule": "poly", "lr": 1e-3, "power": 1.0, "single": 7})
    study.enqueue_trial({})
    first, second = run(study, CONDITIONAL, 2)
    assert first == {"schedule": "poly", "lr": 1e-3, "power": 1.0, "single": 7}
    assert second == run(opened("random", CONDITIONAL), CONDITIONAL, 2)[1]


def test_the_draw_does_not_depend_on_trials_that_run_at_the_same_time() -> None:
    one, many = opened("random", RANGES), opened("random", RANGES)
    alone = run(one, RANGES, 3)
    asked = [many.ask() for _ in range(3)]
    assert [RANGES.suggest(trial) for trial in reversed(asked)] == alone[::-1]


def test_an_objective_may_suggest_more_by_itself() -> None:
    draws = []
    for _ in range(2):
        study = opened("tpe", RANGES)
        draws.append([study.ask().suggest_float("mine", 0, 1) for _ in range(3)])
    assert draws[0] == draws[1]
    assert len(set(draws[0])) == 3


def test_tpe_learns_from_the_trials_before() -> None:
    space = parse({"x": {"low": -10.0, "high": 10.0}})
    study = opened("tpe", space, n_startup_trials=5)
    for _ in range(40):
        trial = study.ask()
        study.tell(trial, (space.suggest(trial)["x"] - 3) ** 2)
    late = [abs(trial.params["x"] - 3) for trial in study.trials[20:]]
    assert sorted(late)[10] < 3.0  # at random: 5


@pytest.mark.parametrize("name", [n for n in optuna.samplers.__all__ if n.endswith("Sampler")])
def test_any_class_of_optuna_can_be_named(name: str) -> None:
    assert (factory(name) is None) == (name in ("BaseSampler", "BaseGASampler"))


@pytest.mark.parametrize("name", ["tpee", "BaseSampler", "nsgaii", "BaseGASampler", ""])
def test_other_names_are_not_samplers(name: str) -> None:
    assert factory(name) is None
    with pytest.raises(ValueError, match=f"no sampler is called {name!r}; one of tpe, random"):
        make(name, {}, 0)


def test_arguments_are_passed_on_and_a_seed_among_them_wins() -> None:
    sampler = make("tpe", {"n_startup_trials": 3, "multivariate": True}, 0)
    assert isinstance(sampler, optuna.samplers.TPESampler)
    assert sampler._n_startup_trials == 3

    def first(sampler: BaseSampler) -> float:
        return optuna.create_study(sampler=sampler).ask().suggest_float("x", 0, 1)

    assert first(make("random", {"seed": 5}, 0)) == first(make("random", {}, 5)) != first(make("random", {}, 0))


def test_an_experimental_sampler_asked_for_by_name_does_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    make("gp", {}, 0)
    make("tpe", {"multivariate": True, "group": True}, 0)
    assert not recwarn.list


def test_a_missing_dependency_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("cmaes", "CmaEsSampler"):
        with pytest.raises(MissingExtraError, match=r"pip install 'hpo\[samplers\]'"):
            make(name, {}, 0)


def test_a_function_can_be_added_to_the_samplers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS, "mine", lambda seed: optuna.samplers.RandomSampler(seed))
    assert run(opened("mine", RANGES), RANGES, 3) == run(opened("random", RANGES), RANGES, 3)


# ---------------------------------------------------------------- Optuna's own suite

OTHER = parse({"not_in_the_suite": {"low": 0.0, "high": 1.0}})


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
class TestConformance(suites.BasicSamplerTestCase):
    """The parameters of the suite's objectives are not in the space, so each is drawn independently."""

    @pytest.fixture(params=["random", "tpe"])
    def sampler(self, request: pytest.FixtureRequest) -> Callable[[], BaseSampler]:
        return lambda: TrialSeededSampler(request.param, {}, OTHER, 0)


def test_trials_asked_together_are_spread_out() -> None:
    """TPE counts a running trial as a bad one: `constant_liar`, Optuna's default."""
    space = parse({"x": {"low": 0.0, "high": 10.0}})

    def spread(told_in_between: bool) -> float:
        distances = []
        for seed in range(12):
            study = opened("tpe", space, seed, n_startup_trials=4)
            for _ in range(16):
                trial = study.ask()
                study.tell(trial, (space.suggest(trial)["x"] - 3) ** 2)
            xs = []
            for _ in range(4):
                trial = study.ask()
                xs.append(space.suggest(trial)["x"])
                if told_in_between:
                    study.tell(trial, state=optuna.trial.TrialState.FAIL)  # TPE ignores failed trials
            distances.append(float(np.ptp(xs)))
        return float(np.mean(distances))

    assert spread(told_in_between=False) > 1.3 * spread(told_in_between=True)
