"""The next study: what trials with a known optimum show, and what chance does not."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState, create_trial

from hpo.analysis import next_study
from hpo.config import study_spec, yaml
from hpo.core.errors import StudyError
from hpo.space.parameters import Float
from hpo.space.search_space import SearchSpace
from hpo.storage.snapshot import Results

Call = Callable[..., tuple[int, str]]
SPACE: dict[str, Any] = {
    "learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
    "batch_size": [8, 16, 32],
    "epochs": {"low": 1, "high": 9},
    "warmup_ratio": {"low": 0.0, "high": 0.5},
    "schedule": "linear",
}


def optimum_at(rate: float, batch: int = 16) -> Callable[[Mapping[str, Any]], float]:
    """Return a score that is highest at a learning rate, and is lower for other batch sizes."""
    return lambda params: (
        0.9 - 0.1 * abs(math.log10(params["learning_rate"] / rate)) - 0.02 * (params["batch_size"] != batch)
    )


def studied(score: Callable[[Mapping[str, Any]], float], count: int, seed: int = 0, **best: Any) -> Results:
    """Return a study of random trials with scores, the best of which has some parameters given."""
    study = study_spec.build({"name": "s", "model": "m", "data": {}, "space": SPACE, "trials": 40}, "test", Path())
    draw, trials = random.Random(seed), []
    for number in range(count):
        params = {
            "learning_rate": 10 ** draw.uniform(-5, -2),
            "batch_size": draw.choice([8, 16, 32]),
            "epochs": draw.randint(1, 9),
            "warmup_ratio": draw.uniform(0.0, 0.5),
        }
        last = best if number == count - 1 else {}
        value = 0.99 if last else score(params)
        made = create_trial(value=value, params={**params, **last}, distributions=study.space.distributions())
        made.number = number
        trials.append(made)
    return Results("s", "maximize", tuple(trials), {"config": study.to_dict(), "fingerprint": {}})


def found(results: Results) -> dict[str, next_study.Change]:
    space: SearchSpace = study_spec.from_dict(results.attrs["config"]).space
    return {change.name: change for change in next_study.changes(results, space)}


@pytest.mark.parametrize("rate", [3e-5, 3e-4, 3e-3])
def test_a_range_is_narrowed_around_its_optimum_and_one_that_does_not_matter_is_not(rate: float) -> None:
    changes = found(studied(optimum_at(rate), 40))
    after = changes["learning_rate"].after
    assert after.low < rate < after.high  # type: ignore[union-attr]
    assert math.log10(after.high / after.low) < 0.8 * 3  # type: ignore[union-attr]
    assert "completed trials" in changes["learning_rate"].why
    assert re.search(r"importance 0\.\d\d \(95%: 0\.\d\d to [01]\.\d\d\) from 40", changes["learning_rate"].why)
    assert changes.keys() <= {"learning_rate", "batch_size"}


def test_choices_of_which_no_trial_is_among_the_better_third_are_left_out() -> None:
    change = found(studied(lambda params: float(params["batch_size"] == 16) + params["learning_rate"], 40))[
        "batch_size"
    ]
    assert 16 in change.after.values  # type: ignore[union-attr]
    assert 8 not in change.after.values  # type: ignore[union-attr]
    assert "without 8 (" in change.why


def test_scores_of_noise_narrow_nothing_more_often_than_said() -> None:
    """The optimum is nowhere: of 60 studies of four parameters, 5 % change by what it says, and 3 more at most."""
    changed = 0
    for seed in range(60):
        noise = random.Random(1000 + seed)
        changed += any("end" not in c.why for c in found(studied(lambda _, n=noise: n.random(), 24, seed)).values())  # type: ignore[misc]
    assert changed <= 6


def test_few_trials_narrow_nothing() -> None:
    assert not found(studied(optimum_at(3e-4), 9))


@pytest.mark.parametrize(
    ("best", "low", "high"),
    [
        ({"learning_rate": 1e-2}, 1e-5, 0.1),
        ({"learning_rate": 1e-5}, 1e-6, 1e-2),
        ({"epochs": 9}, 1, 12),
        ({"warmup_ratio": 0.5}, 0.0, 0.67),
    ],
)
def test_an_optimum_at_an_end_widens_it(best: dict[str, Any], low: float, high: float) -> None:
    ((name, change),) = found(studied(optimum_at(3e-4), 6, **best)).items()
    assert name in best
    assert (change.after.low, change.after.high) == pytest.approx((low, high), rel=0.01)  # type: ignore[union-attr]
    assert "the best trial (5)" in change.why


def test_no_range_is_taken_to_values_that_a_hyperparameter_cannot_have() -> None:
    assert not found(studied(optimum_at(3e-4), 6, epochs=1, warmup_ratio=0.0))
    results = studied(optimum_at(3e-4), 6, warmup_ratio=0.5)
    wide = Float(0.2, 0.9)
    change = next_study._widened("warmup_ratio", wide, None, "upper", results, "")
    assert change is not None
    assert change.after == Float(0.2, 1.0)


def test_trials_that_diverged_show_where_not_to_search() -> None:
    """The score does not depend on the learning rate, but a third of the trials, at high rates, diverge."""
    results = studied(lambda params: 0.5 + 0.01 * math.sin(1e5 * params["warmup_ratio"]), 45)
    for trial in results.trials:
        if trial.params["learning_rate"] > 1e-3:
            trial.state, trial.user_attrs = TrialState.PRUNED, {"reason": "diverged"}
    trials = next_study._trials(Results(results.name, results.direction, results.trials, results.attrs))
    assert all(trial.params["learning_rate"] <= 1e-3 for trial in trials.ranked[: trials.better])
    assert len(trials.ranked) == 45


# ---------------------------------------------------------------- the file


def test_the_file_is_a_study_with_a_comment_for_each_change(tmp_path: Path) -> None:
    results = studied(optimum_at(3e-4), 40)
    path = tmp_path / "next.yaml"
    changes = next_study.write(results, path)
    text = path.read_text()
    assert text.startswith("# The next study after s (40 complete)")
    lines = text.splitlines()
    for change in changes:
        pairs = itertools.pairwise(lines)
        above = next(first for first, second in pairs if second.strip().startswith(f"{change.name}:"))
        assert above.strip() == f"# {change.why}"
    study = study_spec.load(path)
    assert (study.config.name, study.config.trials, study.config.seed) == ("s-2", 40, 0)
    for change in changes:
        assert study.space.parameters[change.name] == change.after
    assert study.space.parameters["epochs"] == study_spec.from_dict(results.attrs["config"]).space.parameters["epochs"]
    assert study.space.baseline == {"learning_rate": 5e-5, "batch_size": 32, "epochs": 3, "warmup_ratio": 0.1}
    assert "max_length" not in yaml.read(path)[0]  # as it would be without the file


@pytest.mark.parametrize(("name", "after"), [("s", "s-2"), ("s-2", "s-3"), ("s-b", "s-b-2"), ("s-9", "s-10")])
def test_the_next_study_has_the_next_name(name: str, after: str) -> None:
    assert next_study._next_name(name) == after


def test_what_shows_nothing_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "next.yaml"
    with pytest.raises(StudyError, match=r"show no reason to change a range.*from 10 completed trials on"):
        next_study.write(studied(optimum_at(3e-4), 5), path)
    empty = Results("s", "maximize", (), {})
    with pytest.raises(StudyError, match=r"nothing to learn from: no trial of s has completed; run it \(hpo run s\)"):
        next_study.write(empty, path)
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(StudyError, match="exists; name a new file with -o"):
        next_study.write(studied(optimum_at(3e-4), 40), path)
    assert path.read_text() == "mine"


def test_end_to_end_with_an_objective_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text("def objective(params):\n    return -abs(params['x'] - 0.8) - 0.02 * params['k']\n")
    Path("own.yaml").write_text(
        "objective: own:objective\nspace: {x: {low: 0.0, high: 1.0}, k: [0, 1, 2]}\ntrials: 30\nsampler: random\n"
    )
    call("run", "own.yaml", "-q")
    code, printed = call("next", "own", "-o", "then.yaml")
    assert code == 0, printed
    assert "x: none of the better 10 of 30 trials is below" in printed
    space = study_spec.load(Path("then.yaml")).space
    assert 0 < space.parameters["x"].low < 0.8 < space.parameters["x"].high <= 1  # type: ignore[union-attr]
    code, printed = call("run", "then.yaml", "-q")
    assert code == 0, printed
    assert call("next", "nothing", "-o", "x.yaml")[0] == 2
