"""A list of models in a study file is the parameter `model` of its space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from study_problems import problems

from hpo.config import study_spec
from hpo.config.study_spec import StudySpec, from_dict
from hpo.core.errors import ConfigError
from hpo.execution.added_trials import checked
from hpo.execution.study_setup import planned_rows
from hpo.space.parameters import Categorical

SPACE: dict[str, Any] = {"learning_rate": {"low": 1e-5, "high": 1e-3}, "epochs": 2}


def raw(**settings: Any) -> dict[str, Any]:
    return {"name": "s", "model": ["a", "b"], "data": {"train": "rows.csv"}, "space": SPACE, **settings}


def build(**settings: Any) -> StudySpec:
    return study_spec.build(raw(**settings), "test", Path())


@pytest.mark.parametrize("space", [SPACE, {"parameters": SPACE, "source": "a paper"}, "default"])
def test_the_models_are_the_first_parameter_and_the_first_of_them_is_the_published_default(space: Any) -> None:
    study = build(space=space)
    assert next(iter(study.space.parameters.items())) == ("model", Categorical(["a", "b"]))
    assert study.space.first_trial()["model"] == "a"
    one = build(space=space, model="a").space
    assert study.space.fixing("model", "a").parameters == one.parameters
    assert "model" not in {**one.parameters, **one.baseline}


def test_a_space_may_name_another_published_default_and_configurations_of_a_model() -> None:
    space = {"parameters": SPACE, "baseline": {"model": "b"}, "configurations": [{"model": "a", "learning_rate": 1e-4}]}
    rows, _ = planned_rows(build(space=space))
    assert [row["model"] for row, _ in rows[:2]] == ["b", "a"]


def test_a_study_may_search_nothing_but_the_model() -> None:
    assert [row["model"] for row, _ in planned_rows(build(space={"epochs": 2}, sampler="grid"))[0]] == ["a", "b"]


def test_a_condition_names_models() -> None:
    rank = {"values": [1, 2], "when": {"model": ["b"]}}
    space = build(space={**SPACE, "batch_size": rank}).space
    assert [space.active("batch_size", {"model": model}) for model in "ab"] == [False, True]
    assert "batch_size" not in space.fixing("model", "a").parameters
    assert space.fixing("model", "b").parameters["batch_size"] == Categorical([1, 2])
    assert problems(raw(space={**SPACE, "batch_size": {"values": [1, 2], "when": {"model": "c"}}})) == {
        "space.batch_size.when.model": "is never 'c'; it is one of 'a', 'b'"
    }


def test_a_stored_study_is_read_back() -> None:
    study = build(space={**SPACE, "batch_size": {"values": [1, 2], "when": {"model": "b"}}})
    stored = study.to_dict()
    assert "model" not in stored["space"]["parameters"]
    again = from_dict(stored)
    assert (again.space, again.config.model) == (study.space, ["a", "b"])
    assert again.to_dict() == stored


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model": []}, {"model": "is a list of 0; name two or more, or one"}),
        ({"model": ["a"]}, {"model": "is a list of 1; write the one without brackets: model: a"}),
        ({"model": ["a", "b", "a"]}, {"model": "has 'a' more than once; name each model once"}),
        ({"shards": 2}, {"shards": "for one model only, not for several (model); leave it out"}),
        (
            {"objective": "f:g", "data": None, "space": {"x": [1, 2]}},
            {"model": "is not read with an objective of your own; leave it out"},
        ),
        *[
            (
                {"model": model, "space": {**SPACE, "model": ["a", "b"]}},
                {
                    "space.model": "is a key of the study file, not of its space: write model: [a, b] there, and leave "
                    "it out here"
                },
            )
            for model in ("a", ["a", "b"])
        ],
    ],
)
def test_refusals(settings: dict[str, Any], expected: dict[str, str]) -> None:
    assert problems(raw(**settings)) == expected


def test_an_objective_of_ones_own_may_have_a_parameter_of_that_name() -> None:
    study = build(objective="f:g", model=None, data=None, space={"model": ["x", "y"]})
    assert from_dict(study.to_dict()).space.parameters == {"model": Categorical(["x", "y"])}


def test_models_that_are_missing_or_the_same_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "config.json").write_text("{}")
    (tmp_path / "rows.csv").write_text("text,label\n")
    names = ["here", "./nowhere", "./here", "package:nothing/x"]
    found = problems(raw(model=names), tmp_path, look=True)
    assert found.keys() == {"model.1", "model.2", "model.3"}
    assert found["model.1"].startswith("there is no model folder ./nowhere")
    assert found["model.2"] == "'./here' is the same model as 'here'; name each model once"
    assert found["model.3"].startswith("model 'package:nothing/x' is not installed")


def test_an_added_trial_names_one_of_the_models() -> None:
    study = build()
    assert checked(study, {"model": "b", "learning_rate": 1e-4})[0] == {"model": "b", "learning_rate": 1e-4}
    with pytest.raises(ConfigError, match="model: 'c' is not one of its choices, 'a', 'b'"):
        checked(study, {"model": "c"})
