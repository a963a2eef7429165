"""The studies of a comparison of samplers: their names and seeds, what they share, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import tiny
from optuna.trial import TrialState

from hpo.config import study_spec
from hpo.core.errors import ConfigError, StudyError
from hpo.core.events import Silent
from hpo.execution import run_study, sampler_studies
from hpo.storage import backends

URL = "sqlite:///hpo.db"
OBJECTIVE = """
def objective(params):
    for step in range(1, 4):
        yield 1 - (params["x"] - 0.7) ** 2 - 1 / step
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> study_spec.StudySpec:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parabola.py").write_text(OBJECTIVE)
    raw: dict[str, Any] = {"name": "s", "objective": "parabola:objective", "trials": 4, "seed": 5}
    raw |= {"sampler": {"name": "tpe", "n_startup_trials": 2}, "space": {"x": {"low": 0.0, "high": 1.0}}}
    (tmp_path / "s.yaml").write_text(json.dumps(raw))
    return study_spec.load(tmp_path / "s.yaml")


def run(studies: list[sampler_studies.SamplerStudy]) -> dict[str, optuna.Study]:
    return {each.name: opened for each, opened, _ in sampler_studies.run_all(studies, URL, Silent(), lambda: None)}


def test_each_sampler_has_a_study_for_each_seed(study: study_spec.StudySpec) -> None:
    found = sampler_studies.planned(study, ["random", "tpe"], 3)
    assert [(each.name, each.sampler, each.study.config.seed) for each in found] == [
        ("s.random", "random", 5),
        ("s.tpe", "tpe", 5),
        ("s.random.2", "random", 6),
        ("s.tpe.2", "tpe", 6),
        ("s.random.3", "random", 7),
        ("s.tpe.3", "tpe", 7),
    ]
    assert found[0].study.config.sampler == "random"
    assert found[1].study.config.sampler == {"name": "tpe", "n_startup_trials": 2}  # the study's own
    same = {"name", "sampler", "seed"}
    for each in found:
        one, other = study.to_dict(), each.study.to_dict()
        assert {key: one[key] for key in one if key not in same} == {
            key: other[key] for key in other if key not in same
        }


def test_a_study_of_a_comparison_is_what_it_would_be_alone(study: study_spec.StudySpec) -> None:
    found = run(sampler_studies.planned(study, ["random", "tpe"], 2))
    alone = study_spec.from_dict(study.to_dict(), {"name": "alone", "seed": 6})
    expected = run_study.run(alone, URL).study
    assert [(t.params, t.value) for t in found["s.tpe.2"].trials] == [(t.params, t.value) for t in expected.trials]
    assert found["s.random"].trials[0].params == found["s.tpe"].trials[0].params  # both drawn at random
    assert found["s.random"].trials[0].params != found["s.random.2"].trials[0].params


def test_a_comparison_that_was_interrupted_goes_on(study: study_spec.StudySpec) -> None:
    first = sampler_studies.planned(study, ["random", "tpe"], 1)
    whole = run(first)
    again = run(sampler_studies.planned(study, ["random", "tpe", "qmc"], 1))
    for name in whole:
        ran = [(t.number, t.state, t.datetime_complete) for t in whole[name].trials]
        assert [(t.number, t.state, t.datetime_complete) for t in again[name].trials] == ran
    assert [t.state for t in again["s.qmc"].trials] == [TrialState.COMPLETE] * 4


def test_the_array_is_opened_once_for_a_seed(study: study_spec.StudySpec, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    kept = sampler_studies.open_array
    monkeypatch.setattr(sampler_studies, "open_array", lambda given: (opened.append(given.config.seed), kept(given))[1])
    run(sampler_studies.planned(study, ["random", "tpe", "qmc"], 2))
    assert opened == [5, 6]


def test_all_samplers_that_cannot_run_are_named(study: study_spec.StudySpec) -> None:
    with pytest.raises(ConfigError) as caught:
        sampler_studies.planned(study, ["random", "tpee", "grid", "nope"], 1)
    said = str(caught.value)
    assert "--samplers: 3 problems" in said
    assert "tpee.sampler: 'tpee' is not a sampler" in said
    assert "grid.space.x: is a range; a grid needs a list of values, or a step" in said
    assert "nope.sampler: 'nope' is not a sampler" in said


def test_a_name_that_is_too_long_is_refused(study: study_spec.StudySpec) -> None:
    long = study_spec.from_dict(study.to_dict(), {"name": "n" * 95})
    with pytest.raises(StudyError, match=r"1 studies of the comparison .* 'n+.random' with 102 characters"):
        sampler_studies.planned(long, ["tpe", "random"], 1)
    beside = study_spec.from_dict(study.to_dict(), {"name": "s.confirm"})
    with pytest.raises(StudyError, match="hpo confirm s goes on with it"):
        sampler_studies.planned(beside, ["tpe", "random"], 1)


def test_a_study_of_that_name_that_searches_otherwise_is_refused(study: study_spec.StudySpec) -> None:
    run_study.run(study_spec.from_dict(study.to_dict(), {"name": "s.tpe", "sampler": "random", "pruner": "none"}), URL)
    studies = sampler_studies.planned(study, ["random", "tpe"], 1)
    with pytest.raises(StudyError) as caught:
        sampler_studies.refuse_others(studies, backends.look(URL))
    said = str(caught.value)
    assert "(2 settings)" in said
    assert "s.tpe: sampler is 'random' there, and {'name': 'tpe', 'n_startup_trials': 2} in this comparison" in said
    assert "s.tpe: pruner is 'none' there, and 'median' in this comparison" in said
    run(sampler_studies.planned(study, ["qmc"], 1))
    sampler_studies.refuse_others(sampler_studies.planned(study, ["qmc"], 1), backends.look(URL))


@pytest.mark.slow
def test_a_real_model_is_compared_on_equal_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = study_spec.build(tiny.study(tmp_path, trials=3, pruner="none"), "test", tmp_path)
    found = run(sampler_studies.planned(base, ["random", "tpe"], 1))
    one, other = (found[f"{base.config.name}.{sampler}"].trials for sampler in ("random", "tpe"))
    assert [(t.params, t.value, t.intermediate_values) for t in one] == [
        (t.params, t.value, t.intermediate_values) for t in other
    ]  # TPE draws its first ten at random: the arrays that train them are the same to the bit
