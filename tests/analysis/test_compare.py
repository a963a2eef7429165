from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import chats
import choices
import documents
import numpy as np
import paired
import pandas as pd
import pytest
import squad_rows
import tagged
import tiny
import torch
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

from hpo.analysis import predictions, verdict
from hpo.analysis.bootstrap import intervals
from hpo.analysis.compare import compare, compared_text
from hpo.config import study_spec
from hpo.core.errors import HpoError, StudyError
from hpo.execution import trial_arrays
from hpo.search.samplers import DRAWN_BY, RANDOM
from hpo.storage.snapshot import Results
from hpo.storage.snapshot_json import finite_json
from hpo.tasks.classification.predictions import LabelPredictions
from hpo.tasks.metrics import METRICS, score
from hpo.tasks.registry import TASKS

ROWS = 60
LABELS = ("bad", "good", 'so, "so"')


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr("hpo.analysis.bootstrap.RESAMPLES", 200)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outputs(task: str, seed: int) -> LabelPredictions:
    """Return outputs of a model on the same rows for every seed."""
    targets: Any
    rng, labels = np.random.default_rng(seed), np.arange(ROWS) % 3
    if task == "regression":
        targets = labels + np.linspace(0, 1, ROWS)
        return LabelPredictions(task, targets, (targets + rng.normal(size=ROWS))[:, None])
    signs = np.eye(3)[labels]
    targets = labels if task == "single_label" else signs
    return LabelPredictions(task, targets, 2 * (2 * signs - 1) + 3 * rng.normal(size=(ROWS, 3)))


def labels_of(found: LabelPredictions) -> list[Any]:
    if found.task == "regression":
        return [float(value) for value in found.targets]
    if found.task == "multi_label":
        return [[name for name, yes in zip(LABELS, row, strict=True) if yes] for row in found.targets]
    return [LABELS[index] for index in found.targets]


def study(
    name: str, found: LabelPredictions, metric: str, direction: Any = "maximize", trials: int = 0, **changes: Any
) -> Results:
    """Return a study whose trial 0 is the best, with its file of predictions."""
    rows = TASKS[found.task].predicted_rows(found, LABELS)
    texts = [f"text {row // 2}\nof two lines" for row in range(ROWS)]  # every text is there twice
    merged = [
        {"row": row, "text": text, "label": label, **each}
        for row, (text, label, each) in enumerate(zip(texts, labels_of(found), rows, strict=True), 1)
    ]
    predictions.write(merged, file_of(name))
    return results_of(name, found, metric, direction, trials, **changes)


def file_of(name: str) -> Path:
    return Path("runs") / name / "predictions" / "trial_0_test.csv"


def results_of(
    name: str, found: Any, metric: str, direction: Any = "maximize", trials: int = 0, **changes: Any
) -> Results:
    """Return a study whose trial 0 is the best."""
    best = {"number": 0, "score": score(metric, found)}
    look = {"best": best, "baseline": None, "metric": metric, "examples": len(found), "trials": 1}
    made = []
    for number in range(1 + trials):
        value = (0.9 - number / 100) * (1 if direction == "maximize" else -1)
        space = {"x": FloatDistribution(0, 100)}
        trial = create_trial(
            value=value, params={"x": number}, distributions=space, system_attrs={DRAWN_BY: RANDOM} if trials else {}
        )
        trial.number = number
        made.append(trial)
    config = {"metric": metric, "data": {"group": None}} | changes.pop("config", {})
    facts = {"task": found.task, "metric": metric, "data": "abc"} | changes
    fingerprint = {"settings": {}, "facts": facts}
    return Results(name, direction, tuple(made), {"config": config, "fingerprint": fingerprint, "test:0": look})


@pytest.mark.parametrize(
    ("task", "metric", "direction"),
    [
        ("single_label", "accuracy", "maximize"),
        ("single_label", "roc_auc", "maximize"),
        ("single_label", "loss", "minimize"),
        ("multi_label", "f1_micro", "maximize"),
        ("multi_label", "loss", "minimize"),
        ("regression", "spearman", "maximize"),
        ("regression", "loss", "minimize"),
    ],
)
def test_the_difference_and_its_interval_are_those_of_the_models_outputs(
    task: str, metric: str, direction: str
) -> None:
    models = [outputs(task, 1), outputs(task, 2)]
    found = compare(*(study(name, each, metric, direction) for name, each in zip("ab", models, strict=True)))
    groups = np.arange(ROWS) // 2  # equal texts are drawn together
    (interval,) = intervals(metric, models, LABELS, groups)
    scores = [score(metric, each) for each in models]
    assert [each["test"] for each in found["studies"]] == pytest.approx(scores)
    assert found["compared"]["difference"] == pytest.approx(scores[0] - scores[1])
    assert (found["compared"]["low"], found["compared"]["high"]) == pytest.approx(interval)
    assert f"On the same {ROWS} test examples the difference is " in compared_text(found)


OTHERS: list[tuple[Any, str]] = [
    (tagged.study, "entity_f1"),
    (tagged.study, "loss"),
    (squad_rows.study, "answer_f1"),
    (squad_rows.study, "exact_match"),
    (squad_rows.study, "loss"),
    (choices.study, "accuracy"),
    (choices.study, "loss"),
    (chats.study, "loss"),
    (chats.study, "bits_per_byte"),
    (paired.study, "token_accuracy"),
    (documents.study, "perplexity"),
]


def models_of(folder: Path, study_of: Any, metric: str, **overrides: Any) -> tuple[Any, list[Any]]:
    """Return the array of a tiny study, and the predictions of two models for its test split."""
    array: Any = trial_arrays.open_array(study_spec.build(study_of(folder, metric=metric, **overrides), "test", folder))
    found = [array.setup.predict(array.setup.model, "test")]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for parameter in array.setup.model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return array, [*found, array.setup.predict(array.setup.model, "test")]


def written(array: Any, models: list[Any], **changes: Any) -> list[Results]:
    """Return a study of each model, with its file as a verdict writes it."""
    setup, found = array.setup, []
    for name, each in zip("ab", models, strict=True):
        verdict._write_predictions(file_of(name), array, 0, "test", lambda *_, each=each: each)
        direction = METRICS[setup.metric].direction
        found.append(results_of(name, each, setup.metric, direction, **changes))
    return found


@pytest.mark.parametrize(("study_of", "metric"), OTHERS, ids=lambda x: x if isinstance(x, str) else x.__module__)
def test_studies_of_every_task_are_compared_as_their_verdicts_would(place: Path, study_of: Any, metric: str) -> None:
    array, models = models_of(place, study_of, metric)
    found, data = compare(*written(array, models)), array.setup.data
    (interval,) = intervals(metric, models, data.labels, data.splits["test"].groups)
    scores = [score(metric, each) for each in models]
    assert [each["test"] for each in found["studies"]] == pytest.approx(scores)
    assert found["compared"]["difference"] == pytest.approx(scores[0] - scores[1])
    if isinstance(interval, str):
        assert found["compared"]["untold"] == interval
    else:
        assert (found["compared"]["low"], found["compared"]["high"]) == pytest.approx(interval)
    path = file_of("b")
    rows = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(rows[:-1]), "utf-8")
    with pytest.raises(HpoError, match=r"run hpo run b, which writes it again|of other test rows"):
        compare(*(results_of(name, each, metric) for name, each in zip("ab", models, strict=True)))


def test_the_groups_of_the_rows_are_in_the_files(place: Path) -> None:
    tiny.write_csv(place / "data.csv", 200)
    table = pd.read_csv(place / "data.csv").assign(author=np.arange(200) // 4)
    table.to_csv(place / "data.csv", index=False)
    data = {"train": "data.csv", "validation": 40, "test": 60, "group": "author"}
    array, models = models_of(place, tiny.study, "roc_auc", data=data)
    found = compare(*written(array, models, config={"data": data}))["compared"]
    test = array.setup.data.splits["test"]
    assert len(set(test.groups)) == 15
    (interval,) = intervals("roc_auc", models, array.setup.data.labels, test.groups)
    assert (found["low"], found["high"]) == pytest.approx(interval, rel=1e-4)


@pytest.mark.parametrize("metric", ["loss", "bits_per_byte"])
def test_means_over_other_tokens_do_not_compare(place: Path, metric: str) -> None:
    """As of a model whose tokenizer makes more tokens of the same texts."""
    array, models = models_of(place, chats.study, metric)
    studies = written(array, [models[0], replace(models[1], units=models[1].units + 1)])
    if metric == "bits_per_byte":
        assert "low" in compare(*studies)["compared"]
    else:
        with pytest.raises(StudyError, match=r"loss of the two studies does not compare.*bits_per_byte"):
            compare(*studies)


def test_a_study_is_no_different_from_itself() -> None:
    one, other = (study(name, outputs("single_label", 1), "accuracy") for name in "ab")
    text = compared_text(compare(one, other))
    assert "the difference is +0; it is unknown whether the best trial of a is better" in text


def test_curves_are_compared_where_both_studies_drew_at_random() -> None:
    one, other = (study(name, outputs("single_label", 1), "accuracy", trials=n) for name, n in (("a", 20), ("b", 60)))
    found = compare(one, other)
    assert json.loads(json.dumps(finite_json(found), allow_nan=False)) == found
    lines = compared_text(found).splitlines()
    assert lines[3] == "Median of the best accuracy of so many random trials, with the 95% band of each curve:"
    assert [line.split()[0] for line in lines[5:]] == ["1", "2", "4", "8", "16"]
    tpe = study("c", outputs("single_label", 1), "accuracy")
    assert compared_text(compare(one, tpe)).splitlines()[-1] == (
        "Tuning curves cannot be compared without that of c (no trial says that it was drawn at random)"
    )


def test_with_groups_that_a_former_version_left_out_there_is_no_interval() -> None:
    config = {"data": {"group": "author"}}
    pair = (study(name, outputs("single_label", i), "accuracy", config=config) for i, name in enumerate("ab"))
    assert compare(*pair)["compared"]["untold"] == "the files of predictions lack the groups of the rows"


def test_all_that_differs_is_said() -> None:
    one = study("a", outputs("single_label", 1), "accuracy")
    other = study("b", outputs("multi_label", 1), "f1_micro", data="abd")
    with pytest.raises(
        StudyError, match=r"(?s)task: .*multi_label.*metric: .*f1_micro.*data: 'abc' and 'abd' \(a hash"
    ):
        compare(one, other)


def test_studies_without_a_test_score_are_refused() -> None:
    good = study("a", outputs("single_label", 1), "accuracy")
    custom = study("b", outputs("single_label", 1), "accuracy", config={"objective": "m:f"})
    with pytest.raises(StudyError, match="b did not fine-tune, and has no test split"):
        compare(good, custom)
    untested = Results("c", "maximize", good.trials, {k: v for k, v in good.attrs.items() if k != "test:0"})
    with pytest.raises(StudyError, match=r"the best trial of c has not been scored on the test split.*hpo run c"):
        compare(good, untested)


def test_files_that_are_missing_damaged_or_of_other_rows_are_refused() -> None:
    one, other = (study(name, outputs("single_label", 1), "accuracy") for name in "ab")
    path = Path("runs/b/predictions/trial_0_test.csv")
    whole = path.read_text("utf-8")
    again = r"; delete it and run hpo run b, which writes it again"
    for text, reason in (
        (whole.replace("text 3\n", "text 4\n"), "the files of predictions are of other test rows"),
        (whole.replace('"text 0\nof two lines",bad', '"text 0\nof two lines",good', 1), f"but 0.* was scored{again}"),
        (whole.replace("label", "lable"), f"cannot be read .KeyError: 'label'.{again}"),
        ("", f"cannot be read .ValueError: it has no rows.{again}"),
    ):
        path.write_text(text, "utf-8")
        with pytest.raises(HpoError, match=reason):
            compare(one, other)
    path.unlink()
    with pytest.raises(HpoError, match=f"cannot be read .No such file or directory.{again}"):
        compare(one, other)
