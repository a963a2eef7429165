from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import optuna
import pytest

from hpo.config.schema import RESUMABLE, StopConfig, StudyConfig
from hpo.config.study_spec import build
from hpo.core.settings import Mark, marked
from hpo.data.keys import DataKeys
from hpo.execution.study_setup import open_study
from hpo.tasks.classification.keys import TextKeys
from hpo.tasks.registry import TASKS

SPACE = {"learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}, "epochs": [2, 3]}
PLAIN = {"name": "s", "model": "m", "data": {"train": "rows.csv"}, "space": SPACE}
DATA = {
    "train": ["a.csv"],
    "validation": 500,
    "label": ["x", "y"],
    "where": {"s": "b"},
    "rows": 100,
    "group": "g",
    "unlabelled": "drop",
    "encoding": "cp1252",
    "separator": ";",
}
DETAILED = {
    **PLAIN,
    "data": DATA,
    "trials": 7,
    "slots": 2,
    "device": "cpu",
    "pruner": "asha",
    "seed": 3,
    "metric": "loss",
    "prune_on": "loss",
    "keep_best": 2,
    "round_size": 2,
}
CUSTOM = {
    "name": "c",
    "objective": "train:objective",
    "space": {"x": [1, 2]},
    "direction": "minimize",
    "same_objective": True,
    "storage": "sqlite:///x.db",
}

# What storages of studies made by earlier versions hold: studies can be resumed only if it stays equal.
STORED = [
    (
        PLAIN,
        '{"model": "m", "data": {"dataset": null, "subset": null, "train": "rows.csv", "validation": 0.1, '
        '"test": 0.1, "text": "text", "text_pair": null, "label": "label", "where": {}, "rows": null}, '
        '"task": "auto", "metric": null, "objective": null, "direction": null, "baseline": true, "seed": 0, '
        '"round_size": null, "evaluations_per_epoch": 2, "patience": null, "max_length": 128, "micro_batch": '
        '64, "precision": "auto", "space": {"parameters": {"learning_rate": {"low": 1e-05, "high": 0.001, '
        '"log": true, "step": null, "when": {}}, "epochs": {"values": [2, 3], "when": {}}}, "baseline": '
        '{"learning_rate": 5e-05, "epochs": 3}, "source": ""}}',
    ),
    (
        DETAILED,
        '{"model": "m", "data": {"dataset": null, "subset": null, "train": ["a.csv"], "validation": 500, '
        '"test": 0.1, "text": "text", "text_pair": null, "label": ["x", "y"], "where": {"s": "b"}, "rows": '
        '100, "group": "g", "unlabelled": "drop", "encoding": "cp1252", "separator": ";"}, "task": "auto", '
        '"metric": "loss", "objective": null, "direction": null, "baseline": true, "seed": 3, "round_size": '
        '2, "evaluations_per_epoch": 2, "patience": null, "max_length": 128, "micro_batch": 64, "precision": '
        '"auto", "space": {"parameters": {"learning_rate": {"low": 1e-05, "high": 0.001, "log": true, "step":'
        ' null, "when": {}}, "epochs": {"values": [2, 3], "when": {}}}, "baseline": {"learning_rate": 5e-05, '
        '"epochs": 3}, "source": ""}}',
    ),
    (
        CUSTOM,
        '{"model": null, "data": null, "task": "auto", "metric": null, "objective": "train:objective", '
        '"direction": "minimize", "baseline": true, "seed": 0, "round_size": null, "evaluations_per_epoch": '
        '2, "patience": null, "max_length": 128, "micro_batch": 64, "precision": "auto", "space": '
        '{"parameters": {"x": {"values": [1, 2], "when": {}}}, "baseline": {}, "source": ""}}',
    ),
]


@pytest.mark.parametrize(("raw", "settings"), STORED, ids=["plain", "detailed", "custom"])
def test_the_fingerprint_of_a_study_is_that_of_earlier_versions(raw: dict[str, Any], settings: str) -> None:
    opened = open_study(build(raw, "x", Path("/f")), optuna.storages.InMemoryStorage(), {"data": "d41d"})
    assert opened.user_attrs["fingerprint"] == {"settings": json.loads(settings), "facts": {"data": "d41d"}}


def test_marks_stand_beside_the_keys() -> None:
    assert set(marked(StudyConfig, Mark.RESUMABLE)) == {
        *("stop", "trials", "timeout", "storage", "slots", "max_consecutive_failures", "device", "threads", "sampler"),
        *("pruner", "prune_on", "warm_start", "fold", "shards", "stall_timeout", "keep_best", "same_objective"),
        *("limits", "second_metric", "gradient_checkpointing"),
    }
    assert set(marked(StudyConfig, Mark.FINE_TUNING)) == {
        *("model", "data", "task", "evaluations_per_epoch", "max_length", "micro_batch", "precision", "device"),
        *("threads", "fold", "shards", "keep_best", "generate", "gradient_checkpointing", "tasks", "base_weights"),
    }
    assert marked(TextKeys, Mark.NEWER) == (
        "group",
        "encoding",
        "separator",
        "benchmark",
        "unlabelled",
        "normalize_labels",
    )
    assert marked(TextKeys, Mark.RESUMABLE) == ()


def test_every_field_is_documented_and_what_may_change_is_a_field() -> None:
    for model in (StudyConfig, StopConfig, DataKeys, *{task.keys for task in TASKS.values()}):
        body = inspect.getsource(model)
        for name in model.__annotations__:
            after = body.split(f"\n    {name}: ")[1].splitlines()[1]
            assert after.strip().startswith('"""'), name
    assert set(StudyConfig.model_fields) >= RESUMABLE
