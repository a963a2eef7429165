from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hpo.config import schema
from hpo.config.checks import custom_parameters
from hpo.config.schema import RESUMABLE, DataConfig, StudyConfig
from hpo.config.study_spec import build, find, from_dict, load, overridden, shipped
from hpo.config.yaml import read
from hpo.core.errors import ConfigError
from hpo.recipe.hyperparameters import HYPERPARAMETERS
from hpo.search.pruners import PRUNERS
from hpo.search.samplers import SAMPLERS
from hpo.space.parser import parse
from hpo.space.search_space import Categorical, Float
from hpo.tasks.classification import TASKS
from hpo.tasks.metrics import METRICS

ROOT = Path(__file__).parents[2]
BUILT_IN = {"name": "s", "model": "m", "data": {"train": "rows.csv"}}
CUSTOM = {"name": "s", "objective": "train:objective", "space": {"x": [1, 2]}}


def problems(raw: Mapping[str, Any], folder: Path = ROOT) -> dict[str, str]:
    """Path -> message of every problem; none for a valid study."""
    try:
        build(raw, "study.yaml", folder)
    except ConfigError as error:
        return {".".join(map(str, problem.path)): problem.message for problem in error.problems}
    return {}


def written(folder: Path, text: str, name: str = "study") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


# ---------------------------------------------------------------- one problem at a time


@pytest.mark.parametrize(
    ("change", "path", "said"),
    [
        ({"modle": "m"}, "modle", "is not a key; did you mean model?"),
        ({"data": {"trian": "x"}}, "data.trian", "is not a key; did you mean train?"),
        ({"data": {"rows": 3}}, "data.rows", "greater than or equal to 10, not 3"),
        ({"data": {"validation": 0}}, "data.validation", "must be files, a share between 0 and 1, or a number of rows"),
        ({"data": {"validation": -0.5}}, "data.validation", "must be files, a share"),
        ({"data": {"test": True}}, "data.test", "not True"),
        ({"data": {"test": 1.5}}, "data.test", "a share must be below 1, not 1.5"),
        ({"data": {"where": {"a": [1]}}}, "data.where.a", "not [1]"),
        ({"data": {"encoding": "utf-9"}}, "data.encoding", "'utf-9' is not a text encoding of Python; e.g. cp1252"),
        ({"data": {"encoding": "base64"}}, "data.encoding", "'base64' is not a text encoding"),
        ({"data": {"separator": "\\t"}}, "data.separator", 'must be one character, e.g. ";" or "\\t" (in double'),
        ({"data": {"separator": '"'}}, "data.separator", "must be one character"),
        ({"data": {"dataset": "a/b", "encoding": "utf-8"}}, "data.encoding", "is for files, not data sets of the Hub"),
        ({"data": {"unlabelled": "keep"}}, "data.unlabelled", "'error' or 'drop', not 'keep'"),
        ({"data": {"group": "label"}}, "data.group", "is column 'label', which is a label; name another column"),
        ({"data": {"label": ["x", "y"], "normalize_labels": True}}, "data.normalize_labels", "not for label columns"),
        ({"data": None}, "data", "is missing"),
        ({"model": None}, "model", "is missing"),
        ({"name": "a b"}, "name", "'a b' cannot be a study's name: use letters, digits, dot, underscore and dash"),
        ({"name": "../up"}, "name", "'../up' cannot be a study's name: use letters, digits, dot, underscore and dash"),
        ({"name": "a\n"}, "name", "cannot be a study's name"),
        ({"name": ""}, "name", "cannot be a study's name"),
        ({"name": 3}, "name", "valid string, not 3"),
        ({"name": "x" * 101}, "name", "at most 100"),
        ({"trials": 0}, "trials", "greater than or equal to 1, not 0"),
        ({"trials": "ten"}, "trials", "valid integer, not 'ten'"),
        ({"trials": 2.5}, "trials", "valid integer, not 2.5"),
        ({"trials": True}, "trials", "valid integer, not True"),
        ({"shards": 0}, "shards", "greater than or equal to 1, not 0"),
        ({"slots": 0}, "slots", "greater than or equal to 1, not 0, or "),
        ({"slots": "most"}, "slots", "'auto', not 'most'"),
        ({"timeout": 0}, "timeout", "greater than 0, not 0"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"task": "tokens"}, "task", "'single_label', 'multi_label' or 'regression', not 'tokens'"),
        ({"precision": "fp16"}, "precision", "not 'fp16'"),
        ({"metric": "acuracy"}, "metric", "'acuracy' is not a metric; did you mean accuracy?"),
        ({"metric": "macro-F1"}, "metric", "'macro-F1' is not a metric; did you mean f1_macro?"),
        ({"metric": "pearson", "task": "single_label"}, "metric", "'pearson' is not defined for single_label; one of"),
        ({"direction": "minimize"}, "direction", "is for a custom objective"),
        ({"sampler": "tpee"}, "sampler", "'tpee' is not a sampler; did you mean tpe?"),
        ({"sampler": "TPESampleer"}, "sampler", "did you mean TPESampler?"),
        ({"sampler": {"name": "tpe", "startup": 3}}, "sampler.startup", "is not an argument of tpe; did you mean"),
        ({"sampler": {"name": "tpe", "multivariate": False, "group": True}}, "sampler", "can only be enabled when"),
        ({"sampler": {"name": "GridSampler", "search_space": {"epochs": [1]}}}, "sampler", "write grid"),
        ({"sampler": "PartialFixedSampler"}, "sampler", "missing 2 required positional arguments"),
        ({"sampler": {"name": "tpe", "n_startup_trials": "8"}}, "sampler.n_startup_trials", "a whole number, not '8'"),
        ({"sampler": {"name": "tpe", "gamma": 5}}, "sampler.gamma", "must be a Python function or null, not 5"),
        (
            {"sampler": {"name": "qmc", "independent_sampler": "random"}},
            "sampler.independent_sampler",
            "must be a Python object (BaseSampler) or null, not 'random'",
        ),
        ({"sampler": "BruteForceSampler"}, "sampler", "cannot draw from this space (FloatDistribution.step must"),
        (
            {"pruner": {"name": "PatientPruner", "wrapped_pruner": "median", "patience": 1}},
            "pruner.wrapped_pruner",
            "must be a Python object (BasePruner) or null, not 'median'",
        ),
        ({"pruner": {"name": "median", "n_startup_trials": 2.5}}, "pruner.n_startup_trials", "whole number, not 2.5"),
        ({"pruner": {"name": "patient", "wrapped": "medan"}}, "pruner", "no pruner is called 'medan'"),
        ({"sampler": {"n_startup_trials": 3}}, "sampler", "'' is not a sampler"),
        ({"sampler": 3}, "sampler", "not 3"),
        ({"pruner": "mediann"}, "pruner", "'mediann' is not a pruner; did you mean median?"),
        (
            {"pruner": {"name": "median", "startup": 3}},
            "pruner.startup",
            "not an argument of median; did you mean n_st",
        ),
        ({"pruner": "threshold"}, "pruner", "lower or upper"),
        ({"checksums": {"a": 1}}, "checksums.a", "valid string, not 1"),
        ({"space": "brt"}, "space", "there is no search space 'brt'; shipped: bert, deberta"),
        ({"space": 3}, "space", "must be a name, a path or a mapping"),
        (
            {"space": {"learning_rte": [1e-5]}},
            "space.learning_rte",
            "is not read by the objective; did you mean learning_r",
        ),
        ({"space": {"epochs": [0]}}, "space.epochs", "0 is outside [1, 10000]"),
        (
            {"sampler": "grid", "space": {"batch_size": {"low": 1, "high": 1024}, "epochs": {"low": 1, "high": 1000}}},
            "space",
            "has 1,024,000 points, and a grid plans each of 100,000 at most",
        ),
        ({"sampler": "grid"}, "space.learning_rate", "is a range; a grid needs a list of values, or a step"),
    ],
)
def test_what_is_wrong_in_a_study_is_named_with_the_next_step(change: dict[str, Any], path: str, said: str) -> None:
    assert problems(BUILT_IN) == {}
    found = problems({**BUILT_IN, **change})
    assert path in found
    assert said in found[path]
    assert set(found) == {path} or change == {"sampler": "grid"}  # the default space has several ranges


@pytest.mark.parametrize(
    ("change", "path", "said"),
    [
        ({"slots": 2}, "slots", "must be 1 with shards"),
        ({"slots": "auto"}, "slots", "must be 1 with shards"),
        ({"fold": True}, "fold", "a model is folded or divided (shards), not both"),
        ({"device": "mps"}, "device", "shards are for cuda or cpu"),
        ({"space": "lora"}, "shards", "whole models only, not adapters (lora_rank)"),
    ],
)
def test_what_does_not_go_with_a_divided_trial(change: dict[str, Any], path: str, said: str) -> None:
    assert problems({**BUILT_IN, **change}) == {}
    assert problems({**BUILT_IN, "shards": 2, "fold": False}) == {}
    found = problems({**BUILT_IN, "shards": 2, **change})
    assert set(found) == {path}
    assert said in found[path]


def test_an_objective_of_ones_own_has_no_shards() -> None:
    assert set(problems({**CUSTOM, "shards": 2, "slots": 2})) == {"shards"}


def test_a_grid_over_ranges_names_each_of_them() -> None:
    found = problems({**BUILT_IN, "sampler": {"name": "grid"}})
    assert set(found) == {f"space.{name}" for name in ("learning_rate", "warmup_ratio", "weight_decay")}
    lattice = {"learning_rate": [1e-5], "warmup_ratio": {"low": 0, "high": 0.2, "step": 0.1}}
    assert problems({**BUILT_IN, "sampler": "grid", "space": lattice}) == {}


@pytest.mark.parametrize("name", [n for n in SAMPLERS if n != "grid"])
def test_every_sampler_is_accepted(name: str) -> None:
    assert problems({**BUILT_IN, "sampler": name}) == {}


@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_is_accepted(name: str) -> None:
    setting = {"name": name, "lower": 0.1} if name == "threshold" else name
    assert problems({**BUILT_IN, "pruner": setting}) == {}


@pytest.mark.parametrize(("metric", "task"), [(m, t) for m, entry in METRICS.items() for t in TASKS])
def test_a_metric_is_accepted_for_its_tasks(metric: str, task: str) -> None:
    assert (problems({**BUILT_IN, "metric": metric, "task": task}) == {}) == (task in METRICS[metric].tasks)


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
    assert study.config.data == DataConfig(train="rows.csv", rows=100, text="review")
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


# ---------------------------------------------------------------- custom objectives


def test_the_parameters_that_a_custom_objective_declares_are_checked() -> None:
    def objective(params: Mapping[str, Any]) -> float:
        return 0.0

    study = build({**CUSTOM, "space": {"learning_rte": [1, 2], "depth": 3}}, "x", ROOT)
    custom_parameters(study, objective)  # it declares none
    objective.parameters = ["learning_rate", "depth"]  # type: ignore[attr-defined]
    with pytest.raises(ConfigError) as caught:
        custom_parameters(study, objective)
    (problem,) = caught.value.problems
    assert str(problem) == "space.learning_rte: is not read by train:objective; did you mean learning_rate?"
    objective.parameters = []  # type: ignore[attr-defined]
    with pytest.raises(ConfigError) as caught:
        custom_parameters(study, objective)
    assert len(caught.value.problems) == 2


def test_a_custom_objective_may_read_anything() -> None:
    assert problems({**CUSTOM, "space": {"anything": {"low": 0.0, "high": 9.0}}}) == {}


# ---------------------------------------------------------------- files that ship

SPACES = {"bert", "deberta", "default", "electra", "lora", "roberta", "small_data", "wide"}
STUDIES = {"long_documents", "news_topics", "paraphrases", "quickstart", "sentiment", "similarity", "spam"}


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
    only_single_label = {"class_weights"}  # which other tasks refuse
    read_by_whole_models = {name for name in HYPERPARAMETERS if not name.startswith("lora_")} - only_single_label
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


def test_every_field_is_documented_and_what_may_change_is_a_field() -> None:
    source = Path(schema.__file__).read_text()
    for model in (StudyConfig, DataConfig):
        body = source.split(f"class {model.__name__}(_Model):")[1]
        for name in model.model_fields:
            after = body.split(f"\n    {name}: ")[1].splitlines()[1]
            assert after.strip().startswith('"""'), name
    assert set(StudyConfig.model_fields) >= RESUMABLE
