"""The keys `limits` and `second_metric`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from study_problems import BUILT_IN, CUSTOM, problems

from hpo.config.study_spec import build, from_dict
from hpo.storage.criteria import Criteria, Limit, Second

FINE_TUNING = {**BUILT_IN, "task": "single_label"}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, Criteria()),
        ({"limits": {"loss": 0.5}}, Criteria((Limit("loss", most=0.5),))),
        ({"limits": {"f1_macro": 0.5}}, Criteria((Limit("f1_macro", least=0.5),))),
        ({"limits": {"device_seconds": 60}}, Criteria((Limit("device_seconds", most=60.0),))),
        (
            {"limits": {"loss": {"least": 0.1, "most": 1}, "f1_macro": {"most": 0.9}}},
            Criteria((Limit("loss", 0.1, 1.0), Limit("f1_macro", most=0.9))),
        ),
        ({"second_metric": "f1_macro"}, Criteria(second=Second("f1_macro", "maximize"))),
        ({"second_metric": "device_seconds"}, Criteria(second=Second("device_seconds", "minimize"))),
        ({"model": ["a", "b"], "limits": {"latency_ms": 20}}, Criteria((Limit("latency_ms", most=20.0),))),
        ({"model": ["a", "b"], "second_metric": "size_mb"}, Criteria(second=Second("size_mb", "minimize"))),
    ],
)
def test_directions_are_known_and_written_out(keys: dict[str, Any], expected: Criteria) -> None:
    study = build({**FINE_TUNING, **keys}, "study.yaml", Path())
    assert study.criteria == expected
    stored = study.to_dict()
    assert Criteria.stored(stored) == expected
    assert from_dict(stored).criteria == expected


def test_scores_of_generated_text_are_known_at_the_end_of_a_trial() -> None:
    keys = {"limits": {"bleu": 20, "loss": 3}, "second_metric": "rougeL", "generate": {}, "task": "seq2seq"}
    found = build({**FINE_TUNING, **keys}, "study.yaml", Path()).criteria
    limits = (Limit("bleu", least=20.0), Limit("loss", most=3.0))
    assert found == Criteria(limits, Second("rougeL", "maximize"), at_end=("bleu", "rougeL"))
    assert found.reported == ("loss",)
    keys |= {"task": "question_answering", "limits": {"exact_match": 0.5}, "second_metric": "loss", "generate": None}
    assert build({**FINE_TUNING, **keys}, "study.yaml", Path()).criteria.reported == ("exact_match", "loss")


def test_a_custom_objective_says_which_way_its_metrics_are_better() -> None:
    keys = {"limits": {"latency_ms": {"most": 20}}, "second_metric": {"name": "size", "direction": "minimize"}}
    found = build({**CUSTOM, **keys}, "study.yaml", Path()).criteria
    assert found == Criteria((Limit("latency_ms", most=20.0),), Second("size", "minimize"))


@pytest.mark.parametrize(
    ("raw", "place", "said"),
    [
        ({"limits": {"latency": 20}}, "limits.latency", "'latency' is neither a metric nor one of device_seconds"),
        ({"limits": {"latency_ms": 20}}, "limits.latency_ms", "all trials of a study of one model end with the same"),
        ({"second_metric": "size_mb"}, "second_metric", "so there is nothing to choose between; name several models"),
        ({"limits": {"f1_marco": 1}}, "limits.f1_marco", "did you mean f1_macro?"),
        ({"limits": {"entity_f1": 1}}, "limits.entity_f1", "'entity_f1' is not defined for single_label; one of"),
        ({"limits": {"loss": "low"}}, "limits.loss", "must be a number, {most: NUMBER} or {least: NUMBER}, not 'low'"),
        ({"limits": {"loss": True}}, "limits.loss", "must be a number"),
        ({"limits": {"loss": float("inf")}}, "limits.loss", "must be a number"),
        ({"limits": {"loss": {}}}, "limits.loss", "names no limit; write {most: NUMBER}"),
        ({"limits": {"loss": {"mots": 1}}}, "limits.loss.mots", "is not a key; did you mean most?"),
        ({"limits": {"loss": {"most": "1"}}}, "limits.loss.most", "must be a number, not '1'"),
        ({"limits": {"loss": {"least": 2, "most": 1}}}, "limits.loss", "no value is at least 2 and at most 1"),
        ({"limits": 20}, "limits", "valid dictionary, not 20"),
        ({"metric": "f1_macro", "limits": {"f1_macro": 0.5}}, "limits.f1_macro", "is the metric that is optimised"),
        ({"task": "seq2seq", "limits": {"bleu": 9}}, "limits.bleu", "the study generates none; write generate: {} too"),
        ({"task": "seq2seq", "second_metric": "rouge_l"}, "second_metric", "did you mean rougeL?"),
        ({"second_metric": "size"}, "second_metric", "'size' is neither a metric nor one of device_seconds"),
        ({"second_metric": {"direction": "minimize"}}, "second_metric.name", "is missing"),
        ({"second_metric": {"name": "loss", "way": "up"}}, "second_metric.way", "is not a key; write {name: NAME"),
        (
            {"second_metric": {"name": "loss", "direction": "maximize"}},
            "second_metric.direction",
            "leave it out: loss knows its own, minimize",
        ),
        (CUSTOM | {"limits": {"latency_ms": 20}}, "limits.latency_ms", "Write {most: 20} or {least: 20}"),
        (CUSTOM | {"second_metric": "size"}, "second_metric", "say which way 'size' is better"),
        (
            CUSTOM | {"second_metric": {"name": "size", "direction": "down"}},
            "second_metric.direction",
            "must be 'minimize' or 'maximize', not 'down'",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(raw: dict[str, Any], place: str, said: str) -> None:
    found = problems(raw if "objective" in raw else {**FINE_TUNING, **raw})
    assert list(found) == [place]
    assert said in found[place]
