"""`stop:` ends a study before its trials are used up: the same on going on, in rounds and in several processes."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest

import hpo
from hpo.core.errors import ConfigError
from hpo.execution.generator_array import GeneratorArray
from hpo.execution.runner import Runner
from hpo.search.pruners import make
from hpo.search.samplers import TrialSeededSampler
from hpo.search.stopping import STOPPED, Rules, StudyLimits
from hpo.space.parser import parse
from hpo.storage.criteria import DEVICE_SECONDS

SPACE = parse({"x": {"low": 0.0, "high": 1.0}})
XS = [0.1, 0.5, 0.4, 0.3, 0.9, 0.2]


def study_of(xs: list[float], **first: Any) -> optuna.Study:
    study = optuna.create_study(
        direction="maximize", sampler=TrialSeededSampler("random", {}, SPACE, 0), pruner=make("none", {})
    )
    for number, x in enumerate(xs):
        study.enqueue_trial({"x": x}, user_attrs=first if number == 0 else {})
    return study


def identity(params: Mapping[str, Any]) -> Iterator[float]:
    yield params["x"] / 2
    yield params["x"]


def run(
    study: optuna.Study,
    objective: Callable[[Mapping[str, Any]], Iterator[float]] = identity,
    slots: int = 1,
    round_size: int | None = None,
    devices: int = 1,
    **limits: Any,
) -> str | None:
    rules = Rules(len(study.trials), round_size=round_size, limits=StudyLimits(**limits), devices=devices)
    return Runner(study, SPACE, GeneratorArray(objective, slots), rules).run()


def states(study: optuna.Study) -> str:
    """Return the first letter of every trial's state."""
    return "".join(trial.state.name[0] for trial in study.trials)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"target": 0.5}, "CCWWWW"),
        ({"target": 0.95}, "CCCCCC"),
        ({"plateau": 2}, "CCCCWW"),
        ({"plateau": 3}, "CCCCCC"),
        (
            {"examples": 5},
            "CCWWWW",
        ),  # where examples are not counted, evaluations are: two a trial
    ],
)
def test_a_limit_ends_the_study_and_its_reason_is_kept(limits: dict[str, Any], expected: str) -> None:
    study = study_of(XS)
    reason = run(study, **limits)
    assert states(study) == expected
    assert study.user_attrs.get(STOPPED) == reason
    assert (reason is None) == (expected == "CCCCCC")


def test_a_study_that_is_run_again_stops_at_once_and_goes_on_with_another_limit() -> None:
    study, calls = study_of(XS), []

    def objective(params: Mapping[str, Any]) -> Iterator[float]:
        calls.append(params["x"])
        return identity(params)

    reason = run(study, objective, plateau=2)
    assert run(study, objective, plateau=2) == reason
    assert calls == XS[:4]
    assert run(study, objective, target=0.9) is not None
    assert states(study) == "CCCCCW"
    assert run(study, objective) is None
    assert states(study) == "CCCCCC"
    assert calls == XS
    assert study.user_attrs[STOPPED] is None


def test_the_published_default_ends_first() -> None:
    def objective(params: Mapping[str, Any]) -> Iterator[float]:
        for _ in range(1 if params["x"] > 0.4 else 6):
            yield params["x"]

    study = study_of([0.1, 0.5, 0.6, 0.7, 0.8, 0.9, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96], baseline=True)
    assert "reached" in str(run(study, objective, slots=2, target=0.5))
    assert study.trials[0].state.name == "COMPLETE"
    assert states(study).endswith("WWW")


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_in_rounds_the_study_ends_with_a_round_however_many_slots_there_are(slots: int) -> None:
    study = study_of(XS)
    run(study, slots=slots, round_size=3, target=0.4)
    assert states(study) == "CCCWWW"


def test_device_seconds_are_shared_by_the_trials_of_a_segment_and_times_the_devices() -> None:
    def slow(params: Mapping[str, Any]) -> Iterator[float]:
        for _ in range(3):
            time.sleep(0.02)
            yield params["x"]

    study = study_of(XS[:2])
    began = time.monotonic()
    run(study, slow, slots=2, devices=4)
    passed = time.monotonic() - began
    spent = [trial.user_attrs[DEVICE_SECONDS] for trial in study.trials]
    assert spent[0] == pytest.approx(spent[1], abs=0.002)
    assert 4 * 0.06 <= sum(spent) <= 4 * passed + 0.002


def test_device_hours_count_what_was_put_back_so_that_the_study_does_not_go_on() -> None:
    def slow(params: Mapping[str, Any]) -> Iterator[float]:
        while True:
            time.sleep(0.01)
            yield params["x"]

    study = study_of(XS)
    reason = run(study, slow, device_hours=0.05 / 3600)
    assert "device hours" in str(reason)
    assert states(study) == "WWWWWW"
    assert study.trials[0].user_attrs[DEVICE_SECONDS] >= 0.05
    assert "device hours" in str(run(study, slow, device_hours=0.05 / 3600))


def test_optimize_takes_it_and_warns_with_the_reason(tmp_path: Path) -> None:
    options: dict[str, Any] = {"trials": 30, "storage": f"sqlite:///{tmp_path}/hpo.db", "sampler": "random"}
    with pytest.warns(UserWarning, match="after trial [0-9]+ was better, and stop.plateau is 4"):
        study = hpo.optimize(identity, SPACE, stop={"plateau": 4}, **options)
    ended = [trial for trial in study.trials if trial.state.is_finished()]
    assert len(ended) < 30
    assert max(trial.value for trial in ended) == ended[-5].value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(hpo.optimize(identity, SPACE, **options).best_trials) == 1
    with pytest.raises(ConfigError, match=r"stop.examples: is not read with an objective of your own"):
        hpo.optimize(identity, SPACE, stop={"examples": 10}, name="other")
    with pytest.raises(ConfigError, match=r"stop: needs a space"):
        hpo.optimize(lambda trial: 0.0, stop={"target": 1.0})
