from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpo.config.study_spec import build, find, from_dict, load, overridden, shipped
from hpo.config.yaml import read
from hpo.core.errors import ConfigError
from hpo.recipe.hyperparameters import HYPERPARAMETERS
from hpo.space.parameters import Categorical, Float
from hpo.space.parser import parse
from hpo.tasks.classification.keys import TextKeys

ROOT = Path(__file__).parents[2]
BUILT_IN = {"name": "s", "model": "m", "data": {"train": "rows.csv"}}
CUSTOM = {"name": "s", "objective": "train:objective", "space": {"x": [1, 2]}}


def written(folder: Path, text: str, name: str = "study") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


# ---------------------------------------------------------------- all at once


def test_all_problems_come_at_once_each_with_its_line(tmp_path: Path) -> None:
    text = """\
modle: m
data:
  train: rows.csv
  trian: rows.csv
metric: acuracy
space:
  parameters:
    learning_rate:
      low: 2.0
      high: 1.0
    epocs: 3
trials: 0
sampler: {name: tpe,
  startup: 3}
"""
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, text))
    assert caught.value.source == str(tmp_path / "study.yaml")
    found = [(".".join(map(str, p.path)), p.line) for p in caught.value.problems]
    assert found == [
        ("model", None),
        ("modle", 1),
        ("data.trian", 4),
        ("metric", 5),
        ("space.parameters.learning_rate", 8),
        ("space.parameters.epocs", 11),
        ("trials", 12),
        ("sampler.startup", 14),
    ]
    assert str(caught.value).startswith(f"{tmp_path / 'study.yaml'}: 8 problems\n  model: is missing\n  line 1: modle:")


def test_a_problem_of_a_search_space_file_names_that_file_and_its_line(tmp_path: Path) -> None:
    written(tmp_path, "parameters:\n  epochs: [1, 2]\n  batch_size: [0, 8]\n", "mine")
    path = written(tmp_path, "model: m\ndata: {train: rows.csv}\nspace: mine\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    (problem,) = caught.value.problems
    assert str(problem) == "line 3: space.mine.yaml.parameters.batch_size: 0 is outside [1, 65536]"


# ---------------------------------------------------------------- precedence


def test_the_command_line_wins_over_the_file_over_the_default(tmp_path: Path) -> None:
    path = written(tmp_path, "model: m\ndata: {train: rows.csv, rows: 50}\ntrials: 7\nslots: 2\n")
    study = load(path, {"trials": 9, "data.rows": 100, "data.text": "review"})
    assert (study.config.trials, study.config.slots, study.config.seed) == (9, 2, 0)
    assert study.config.data == TextKeys(train="rows.csv", rows=100, text="review")
    assert study.config.name == "study"
    assert study.folder == tmp_path
    assert load(path, {"name": "other"}).config.name == "other"


def test_a_problem_of_the_command_line_has_no_line_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "model: m\ndata: {train: rows.csv}\ntrials: 7\nslots: 0\n")
    with pytest.raises(ConfigError) as caught:
        load(path, {"trials": 0})
    assert {p.path: p.line for p in caught.value.problems} == {("trials",): None, ("slots",): 4}


def test_a_file_whose_name_cannot_be_a_studys_is_told_to_name_it(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"  name: 'my study' cannot be a study's name: .*; write `name:` in the file"
    ):
        load(written(tmp_path, "model: m\ndata: {train: rows.csv}\n", "my study"))
    assert load(written(tmp_path, "name: mine\nmodel: m\ndata: {}\n", "my study")).config.name == "mine"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, {"a": {"b": 1}, "c": 2}),
        ({"c": 3}, {"a": {"b": 1}, "c": 3}),
        ({"a.b": 5, "a.d": 6}, {"a": {"b": 5, "d": 6}, "c": 2}),
        ({"x.y.z": 1}, {"a": {"b": 1}, "c": 2, "x": {"y": {"z": 1}}}),
    ],
)
def test_dotted_keys_set_what_they_lead_to(overrides: dict[str, Any], expected: dict[str, Any]) -> None:
    raw = {"a": {"b": 1}, "c": 2}
    assert overridden(raw, overrides) == expected
    assert raw == {"a": {"b": 1}, "c": 2}


def test_a_dotted_key_through_a_value_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"c\.d: c is not a mapping"):
        overridden({"c": 2}, {"c.d": 1})


@pytest.mark.parametrize(
    ("change", "direction"),
    [
        ({**BUILT_IN}, "maximize"),
        ({**BUILT_IN, "metric": "loss"}, "minimize"),
        ({**BUILT_IN, "metric": "accuracy"}, "maximize"),
        ({**CUSTOM}, "maximize"),
        ({**CUSTOM, "direction": "minimize"}, "minimize"),
        ({**CUSTOM, "metric": "loss", "direction": "maximize"}, "maximize"),  # a label only
        ({**CUSTOM, "metric": "my own score"}, "maximize"),
    ],
)
def test_a_metric_knows_its_direction_and_a_custom_objective_is_told(change: dict[str, Any], direction: str) -> None:
    assert build(change, "x", ROOT).direction == direction


# ---------------------------------------------------------------- files that ship

SPACES = {"bart_summarisation", "bert", "deberta", "default", "electra", "lora", "marian_translation"}
SPACES |= {"masked_lm", "multiple_choice", "ner", "qa", "qlora", "roberta", "sft_lora", "small_data", "t5", "wide"}
STUDIES = {"long_documents", "news_topics", "paraphrases", "quickstart", "sentiment", "similarity", "spam", "speeches"}
STUDIES |= {"instructions", "masked_reviews", "reviews_and_entities", "summaries", "translations", "tweet_entities"}


def test_the_yaml_files_are_those_tested_here() -> None:
    assert {path.stem for path in (ROOT / "search_spaces").rglob("*.y*ml")} == SPACES
    assert {path.stem for path in (ROOT / "studies").rglob("*.y*ml")} == STUDIES


@pytest.mark.parametrize("name", sorted(SPACES))
def test_every_search_space_loads_by_name_and_says_where_it_is_from(name: str) -> None:
    study = build({**BUILT_IN, "space": name}, "x", Path("/"))
    assert study.space.source
    assert study.space.parameters
    assert study.space.moved_baseline() == {}
    assert study.space.contains(study.space.first_trial())


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_every_study_loads(name: str) -> None:
    path = find(name, "studies")
    assert path is not None
    assert load(path).config.name == name


PUBLISHED: dict[str, tuple[dict[str, list[Any]], dict[str, Any], int]] = {
    "bert": (
        {"learning_rate": [5e-5, 3e-5, 2e-5], "batch_size": [16, 32], "epochs": [2, 3, 4]},
        {"warmup_ratio": 0.1, "weight_decay": 0.01, "schedule": "linear", "dropout": 0.1},
        18,
    ),
    "roberta": (
        {"learning_rate": [1e-5, 2e-5, 3e-5], "batch_size": [16, 32]},
        {"epochs": 10, "warmup_ratio": 0.06, "weight_decay": 0.1, "schedule": "linear"},
        6,
    ),
    "electra": (
        {"learning_rate": [3e-5, 5e-5, 1e-4, 1.5e-4]},
        {"batch_size": 32, "epochs": 3, "warmup_ratio": 0.1, "weight_decay": 0.0, "layer_decay": 0.8, "dropout": 0.1},
        4,
    ),
    "deberta": (
        {"learning_rate": [1.5e-5, 2e-5, 3e-5, 4e-5], "batch_size": [16, 32, 48, 64]},
        {"epochs": 10, "weight_decay": 0.01, "max_grad_norm": 1.0, "schedule": "linear"},
        16,
    ),
    "small_data": (
        {"learning_rate": [1e-5, 2e-5, 3e-5, 5e-5]},
        {"batch_size": 16, "epochs": 20, "warmup_ratio": 0.1, "schedule": "linear"},
        4,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_grids_have_the_values_of_the_papers(name: str) -> None:
    searched, fixed, size = PUBLISHED[name]
    study = build({**BUILT_IN, "space": name, "sampler": "grid"}, "x", ROOT)
    assert {n: p.points() for n, p in study.space.parameters.items()} == searched
    assert fixed.items() <= study.space.fixed.items()
    assert study.space.size == size


def test_the_default_space_holds_every_published_learning_rate_but_extremes() -> None:
    space = build(BUILT_IN, "x", ROOT).space
    rate = space.parameters["learning_rate"]
    assert isinstance(rate, Float)
    assert all(rate.low <= lr <= rate.high for name in PUBLISHED for lr in PUBLISHED[name][0]["learning_rate"])
    assert space.parameters["batch_size"] == Categorical([16, 32])


def test_the_wide_space_has_all_that_the_objective_reads() -> None:
    path = find("wide", "search_spaces")
    assert path is not None
    not_of_all = {"class_weights", "sampling_temperature", "frozen_layers", "warmup_steps"}
    # The first two are refused by tasks, the third by models, the last one beside warmup_ratio.
    read_by_whole_models = {name for name in HYPERPARAMETERS if not name.startswith("lora_")} - not_of_all
    assert set(parse(read(path)[0], HYPERPARAMETERS).parameters) == read_by_whole_models


def test_the_lora_space_begins_with_what_the_paper_used_and_searches_all_of_lora() -> None:
    space = build({**BUILT_IN, "space": "lora"}, "x", ROOT).space
    paper = {"learning_rate": 5e-4, "batch_size": 16, "lora_rank": 8, "lora_alpha": 8.0, "lora_targets": "query_value"}
    assert paper.items() <= space.first_trial().items()
    assert {name for name in HYPERPARAMETERS if name.startswith("lora_")} <= set(space.parameters)


def test_a_space_or_study_is_found_by_path_beside_the_file_then_among_those_that_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    beside = tmp_path / "beside"
    (beside / "sub").mkdir(parents=True)
    own = shipped("search_spaces") / "bert.yaml"
    assert find("bert", "search_spaces", beside) == own
    mine = written(beside, "epochs: [1, 2]\n", "bert")
    assert find("bert", "search_spaces", beside) == mine
    (tmp_path / "search_spaces").mkdir()
    written(tmp_path / "search_spaces", "epochs: [1, 2]\n", "bert")
    assert find("bert", "search_spaces", beside) == Path("search_spaces/bert.yaml")
    deep = written(beside / "sub", "epochs: [1, 2]\n", "deep")
    assert find("sub/deep.yaml", "search_spaces", beside) == deep
    assert find("none", "search_spaces", beside) is None
    assert find("none.yaml", "search_spaces", beside) is None


# ---------------------------------------------------------------- writing and reading back


@pytest.mark.parametrize(
    "raw",
    [
        BUILT_IN,
        {**BUILT_IN, "space": "wide", "sampler": {"name": "tpe", "n_startup_trials": 5}, "timeout": 10},
        {**BUILT_IN, "data": {"train": ["a.csv"], "validation": 500, "label": ["x", "y"], "where": {"s": "b", "n": 1}}},
        {**CUSTOM, "direction": "minimize", "metric": "own"},
        {**CUSTOM, "space": {"x": {"low": 1.0, "high": 2.0}, "y": [None, "a", 1], "z": 1e-5}},
    ],
)
def test_a_study_written_as_json_reads_back_equal(raw: dict[str, Any]) -> None:
    study = build(raw, "x", ROOT)
    again = from_dict(json.loads(json.dumps(study.to_dict())))
    assert again.space == study.space
    assert again.folder == study.folder
    assert again.direction == study.direction
    assert again.to_dict() == study.to_dict()
    ignored = {"space"}  # written out where the file named one
    assert again.config.model_dump(exclude=ignored) == study.config.model_dump(exclude=ignored)


def test_a_stored_study_holds_no_storage_url() -> None:
    study = build({**CUSTOM, "storage": "postgresql://me:c4n4ry@host/db"}, "x", ROOT)
    assert "c4n4ry" not in json.dumps(study.to_dict())


def test_a_study_without_a_metric_has_the_direction_of_its_tasks_metric():
    made = {
        "name": "s",
        "data": {"train": "t.jsonl"},
        "model": "m",
        "space": {"learning_rate": [1e-4, 1e-3]},
        "trials": 1,
    }
    directions = {task: from_dict({**made, "task": task}).direction for task in ("auto", "causal_lm", "seq2seq")}
    assert directions == {"auto": "maximize", "causal_lm": "minimize", "seq2seq": "minimize"}
