"""Generated text in the verdict: scores with paired intervals, samples, the table and the report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hpo.analysis import generated, report
from hpo.analysis.bootstrap import intervals
from hpo.storage.snapshot import Results
from hpo.tasks.language.predictions import TextPredictions
from hpo.tasks.metrics import of_generated_text, score

EXPECTED = [f"the {word} cat sat on mat {i}" for i, word in enumerate(["red", "old", "big", "wet"] * 5)]
RIGHT = [text if i % 3 else text.replace("cat", "dog") for i, text in enumerate(EXPECTED)]
WRONG = ["<script>alert(1)</script>" if i % 2 else text for i, text in enumerate(EXPECTED)]
SOURCE = "a source & its <b>tags</b> " * 60


def predictions(texts: list[str]) -> TextPredictions:
    zeros = np.zeros(len(texts))
    return TextPredictions("seq2seq", zeros, zeros, zeros, zeros, EXPECTED, [SOURCE] * len(texts), texts)


BASELINES = generated.without_model({"The source copied": [SOURCE] * len(EXPECTED)}, predictions(RIGHT))


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return generated.of_models([predictions(RIGHT), predictions(WRONG)], BASELINES, None, seed=4)


def test_every_score_has_its_paired_interval(found: dict[str, Any]) -> None:
    models = [predictions(RIGHT), predictions(WRONG)]
    assert list(found["metrics"]) == of_generated_text("seq2seq")
    for name, each in found["metrics"].items():
        assert each["scores"] == [score(name, model) for model in models]
        assert each["difference"] == each["scores"][0] - each["scores"][1]
        assert [(each["low"], each["high"])] == intervals(name, models)


def test_a_baseline_is_compared_with_the_best_trial(found: dict[str, Any]) -> None:
    for name, each in found["baselines"]["The source copied"].items():
        assert each["scores"] == [score(name, predictions(RIGHT)), score(name, predictions([SOURCE] * len(EXPECTED)))]
        assert each["low"] <= each["difference"] <= each["high"]


def test_the_samples_are_drawn_from_the_seed_and_cut(found: dict[str, Any]) -> None:
    samples = found["samples"]
    rows = [sample["row"] for sample in samples]
    assert rows == sorted({*rows})
    assert len(rows) == 10
    for sample in samples:
        row = sample["row"] - 1
        assert (sample["expected"], sample["generated"]) == (EXPECTED[row], [RIGHT[row], WRONG[row]])
        assert sample["source"] == SOURCE[:1000] + f" [... {len(SOURCE) - 1000} more characters]"
    models = [predictions(RIGHT), predictions(WRONG)]
    assert generated._samples(models, 4) == samples
    assert [sample["row"] for sample in generated._samples(models, 5)] != rows


def test_the_table_says_what_is_shown_and_what_cannot_be_told(found: dict[str, Any]) -> None:
    same = predictions(WRONG)
    untold = generated.of_models([same, same], {}, None, seed=0)
    metrics = {"bleu": found["metrics"]["bleu"], "chrf": untold["metrics"]["chrf"]}
    looked = {"metrics": metrics, "baselines": {"The source copied": metrics}, "samples": []}
    (title, heads, rows), (beside, of_baseline, _) = generated.tables({"examples": 20, "generated": looked})
    assert beside.startswith("The source copied, on the same examples")
    assert of_baseline[2] == "baseline"
    assert title.startswith("Generated text, on 20 test examples")
    assert heads[-1] == "best trial is"
    low, high = (found["metrics"]["bleu"][end] for end in ("low", "high"))
    assert rows[0][-2:] == [f"{low:+.4g} to {high:+.4g}", "better" if low > 0 else "not shown to differ"]
    assert rows[1][-2:] == ["none", "unknown"]
    assert all(len(row) == len(heads) for row in rows)


def test_without_a_second_model_there_is_one_score(found: dict[str, Any]) -> None:
    alone = generated.of_models([predictions(RIGHT)], {}, None, seed=0)
    ((_, heads, _),) = generated.tables({"examples": 20, "generated": alone})
    assert heads == ["metric", "best trial"]
    assert generated.tables({"examples": 20, "generated": None}) == []
    assert generated.tables({"examples": 20}) == []  # of a former version


def test_the_report_shows_them_side_by_side_and_escaped(
    found: dict[str, Any], sample_results: Callable[..., Results]
) -> None:
    look = {"metric": "loss", "examples": 20, "confidence": 0.95, "best": {"number": 12, "score": 0.9}}
    look |= {"baseline": {"number": 0, "score": 0.8}, "difference": 0.1, "shown": False, "untold": "few rows"}
    look["generated"] = found
    page = report._samples(look)
    assert "<th>best (trial 12)</th><th>published default (trial 0)</th>" in page
    assert page.count("<tr") == 11
    assert page.count("<details>") == 10  # the sources are long
    assert "<script>" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;" in page
    assert report._samples({**look, "generated": None}) == ""
