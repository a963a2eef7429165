"""A user's own trials: which are refused, and that they run beside those of the study file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from hpo.config import study_spec
from hpo.core.errors import ConfigError
from hpo.execution.added_trials import checked

Call = Callable[..., tuple[int, str]]
URL = "sqlite:///hpo.db"
SPACE = {
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "batch_size": [8, 16],
    "schedule": ["linear", "polynomial"],
    "power": {"low": 0.5, "high": 2.0, "when": {"schedule": "polynomial"}},
    "epochs": 2,
}


def study(**changes: Any) -> study_spec.StudySpec:
    return study_spec.build({"name": "s", "model": "m", "data": {}, "space": SPACE, **changes}, "test", Path())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rat": 1e-3}, "learning_rat: is not a parameter of this study; did you mean learning_rate?"),
        ({"weight_decay": 0.1}, "weight_decay: is not searched in this study, whose trials have the default, 0.01"),
        ({"epochs": 3}, "epochs: is 2 in every trial of this study"),
        ({"learning_rate": -1.0}, r"learning_rate: -1.0 is outside \(0, 1\]"),
        ({"learning_rate": "fast"}, "learning_rate: 'fast' is not a number"),
        ({"batch_size": 32}, "batch_size: 32 is not one of its choices, 8, 16"),
        ({"power": 1.0}, "power: is read only on a condition .*; give schedule=polynomial too"),
        ({"power": 1.0, "schedule": "linear"}, "give schedule=polynomial too"),
    ],
)
def test_what_does_not_fit_the_space_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checked(study(), given)


def test_all_problems_are_said_at_once() -> None:
    with pytest.raises(ConfigError, match="hpo add: 3 problems"):
        checked(study(), {"learning_rate": -1.0, "batch_size": 32, "nothing": 1})


def test_values_are_those_of_the_space_and_one_outside_a_range_is_said() -> None:
    params, notes = checked(study(), {"learning_rate": 1, "batch_size": 8, "epochs": 2})
    assert (params, type(params["learning_rate"])) == ({"learning_rate": 1.0, "batch_size": 8}, float)
    assert notes == ["learning_rate = 1 is outside what is searched, 0.0001 to 0.01: it is run as given"]


def test_an_adapter_larger_than_those_of_the_study_is_refused() -> None:
    space = {"lora_rank": {"low": 2, "high": 8}, "learning_rate": [1e-4, 2e-4]}
    with pytest.raises(ConfigError, match="9 is above 8, the largest rank"):
        checked(study(space=space), {"lora_rank": 9})


# ---------------------------------------------------------------- end to end

OBJECTIVE = "def objective(params):\n    return -abs(params['x'] - 0.3) - params['k']\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> Path:
    """Return the working folder, in which a study of four trials has run."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OBJECTIVE)
    Path("own.yaml").write_text(
        "objective: own:objective\nspace: {x: {low: 0.5, high: 1.0}, k: [0, 1]}\ntrials: 4\nsampler: random\n"
    )
    assert call("run", "own.yaml", "-q")[0] == 0
    return tmp_path


def rows() -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="own", storage=URL).get_trials()


def test_an_added_trial_is_run_by_the_next_run_and_more_trials_are_still_all_there(folder: Path, call: Call) -> None:
    code, printed = call("add", "own", "x=0.3", "k=0")
    assert code == 0
    assert "note: x = 0.3 is outside what is searched, 0.5 to 1" in printed
    assert [row.state.name for row in rows()] == ["COMPLETE"] * 4 + ["WAITING"]
    assert call("run", "own.yaml", "-q")[0] == 0
    added = rows()[4]
    assert (added.state.name, added.params, added.value) == ("COMPLETE", {"x": 0.3, "k": 0}, 0.0)
    assert "added by the user" in call("trials", "own")[1]
    assert "best: trial 4" in call("show", "own")[1]
    assert call("run", "own.yaml", "-q", "--trials", 6)[0] == 0
    assert [row.state.name for row in rows()] == ["COMPLETE"] * 7
    assert call("add", "own", "k=1")[1].count("the sampler draws x") == 1
    assert call("run", "own.yaml", "-q", "--trials", 2)[0] == 0  # fewer than there are: it runs all the same
    assert rows()[7].state.name == "COMPLETE"
    assert rows()[7].params["k"] == 1


def test_in_rounds_too(folder: Path, call: Call) -> None:
    Path("round.yaml").write_text(Path("own.yaml").read_text() + "round_size: 2\npruner: asha\n")
    call("run", "round.yaml", "-q")
    call("add", "round", "x=0.3", "k=0")
    assert call("run", "round.yaml", "-q")[0] == 0
    states = [row.state.name for row in optuna.load_study(study_name="round", storage=URL).get_trials()]
    assert states == ["COMPLETE"] * 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["own", "x=zero"], "'zero' is not a number"),
        (["own", "x"], "must be KEY=VALUE, e.g. learning_rate=3e-5"),
        (["nothing", "x=1"], "no study 'nothing'"),
        (["own.confirm", "x=1"], "is the confirmation of 'own'"),
    ],
)
def test_errors_write_nothing(folder: Path, call: Call, arguments: list[str], message: str) -> None:
    code, printed = call("add", *arguments)
    assert (code, message in printed) == (2, True), printed
    assert len(rows()) == 4


def test_the_parameters_of_a_trial_that_is_there_are_refused(folder: Path, call: Call) -> None:
    first = rows()[1].params
    code, printed = call("add", "own", *(f"{name}={value!r}" for name, value in first.items()))
    assert (code, "trial 1 of 'own' has these parameters already (complete)" in printed) == (2, True), printed
    assert len(rows()) == 4
