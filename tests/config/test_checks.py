from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hpo.config.checks import custom_parameters
from hpo.config.study_spec import build
from hpo.core.errors import ConfigError
from hpo.search.pruners import PRUNERS
from hpo.search.samplers import SAMPLERS
from hpo.tasks.metrics import METRICS, searchable
from hpo.tasks.registry import TASKS

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
        ({"stop": 0.9}, "stop", "not 0.9"),
        ({"stop": {"goal": 0.9}}, "stop.goal", "is not a key"),
        ({"stop": {"platau": 3}}, "stop.platau", "is not a key; did you mean plateau?"),
        ({"stop": {"plateau": 0}}, "stop.plateau", "greater than or equal to 1, not 0"),
        ({"stop": {"examples": 1.5}}, "stop.examples", "valid integer, not 1.5"),
        ({"stop": {"device_hours": 0}}, "stop.device_hours", "greater than 0, not 0"),
        ({"stop": {"target": math.inf}}, "stop.target", "finite number, not inf"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"task": "tokens"}, "task", "'tokens' is not a task"),
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
        ({"space": "brt"}, "space", "there is no search space 'brt'; shipped: bart_summarisation, bert"),
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
        ({"space": {"epochs": [1, 2], "frozen_layers": 2}}, "shards", "not models with frozen_layers"),
    ],
)
def test_what_does_not_go_with_a_divided_trial(change: dict[str, Any], path: str, said: str) -> None:
    assert problems({**BUILT_IN, **change}) == {}
    assert problems({**BUILT_IN, "shards": 2, "fold": False}) == {}
    found = problems({**BUILT_IN, "shards": 2, **change})
    assert set(found) == {path}
    assert said in found[path]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"space": {"epochs": [1, 2]}}, "is for adapters (lora_rank in the space), below which the layers are frozen"),
        ({"space": "lora", "device": "mps"}, "is for cpu and cuda, not mps"),
        ({"space": "lora", "base_weights": "int4"}, "Input should be 'int8' or 'nf4', not 'int4'"),
    ],
)
def test_what_does_not_go_with_a_base_in_few_bits(change: dict[str, Any], said: str) -> None:
    assert problems({**BUILT_IN, "space": "lora", "base_weights": "nf4"}) == {}
    found = problems({**BUILT_IN, "base_weights": "nf4", **change})
    assert set(found) == {"base_weights"}
    assert said in found["base_weights"]


@pytest.mark.parametrize(
    ("change", "space", "said"),
    [
        (
            {},
            {"lora_rank": [4, 8], "frozen_layers": 2},
            "adapters (lora_rank) are trained on a model whose layers are all",
        ),
        (
            {"fold": True},
            {"frozen_layers": [2, 4]},
            "freeze the same layers, not 2, 4; write one number, or fold: false",
        ),
        ({"fold": True}, {"frozen_layers": {"low": 0, "high": 2}}, "freeze the same layers, not 0, 1, 2"),
        (
            {"fold": True},
            {"schedule": ["linear", "cosine"], "frozen_layers": {"values": [3], "when": {"schedule": "cosine"}}},
            "freeze the same layers, not 0, 3",
        ),
    ],
)
def test_what_does_not_go_with_frozen_layers(change: dict[str, Any], space: dict[str, Any], said: str) -> None:
    found = problems({**BUILT_IN, **change, "space": {"epochs": [1, 2], **space}})
    assert set(found) == {"space.frozen_layers"}
    assert said in found["space.frozen_layers"]
    allowed = {**space, "frozen_layers": 0} if "lora_rank" in space else {**space, "frozen_layers": 2}
    assert problems({**BUILT_IN, **change, "space": {"epochs": [1, 2], **allowed}}) == {}


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


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("task", [task for task in TASKS if task != "multitask"])  # for which a file has `tasks`
def test_a_metric_is_accepted_for_its_tasks(metric: str, task: str) -> None:
    assert (problems({**BUILT_IN, "metric": metric, "task": task}) == {}) == (metric in searchable(task))


# ---------------------------------------------------------------- custom objectives


def test_the_parameters_that_a_custom_objective_declares_are_checked() -> None:
    def objective(params: Mapping[str, Any]) -> float:
        return 0.0

    study = build({**CUSTOM, "space": {"learning_rte": [1, 2], "depth": 3}}, "x", ROOT)
    custom_parameters(study.config, study.space, objective)  # it declares none
    objective.parameters = ["learning_rate", "depth"]  # type: ignore[attr-defined]
    with pytest.raises(ConfigError) as caught:
        custom_parameters(study.config, study.space, objective)
    (problem,) = caught.value.problems
    assert str(problem) == "space.learning_rte: is not read by train:objective; did you mean learning_rate?"
    objective.parameters = []  # type: ignore[attr-defined]
    with pytest.raises(ConfigError) as caught:
        custom_parameters(study.config, study.space, objective)
    assert len(caught.value.problems) == 2


def test_a_custom_objective_may_read_anything() -> None:
    assert problems({**CUSTOM, "space": {"anything": {"low": 0.0, "high": 9.0}}}) == {}
