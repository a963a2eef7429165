from __future__ import annotations

import math
from typing import Any

import pytest
from study_problems import BUILT_IN, CUSTOM, problems

from hpo.search.pruners import PRUNERS
from hpo.search.samplers import SAMPLERS
from hpo.tasks.metrics import METRICS, searchable
from hpo.tasks.registry import TASKS


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


def test_a_custom_objective_may_read_anything() -> None:
    assert problems({**CUSTOM, "space": {"anything": {"low": 0.0, "high": 9.0}}}) == {}
