from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

from hpo.analysis import predictions
from hpo.analysis.bootstrap import intervals
from hpo.analysis.compare import compare, compared_text
from hpo.core.errors import HpoError, StudyError
from hpo.search.samplers import DRAWN_BY, RANDOM
from hpo.storage.snapshot import Results, finite_json
from hpo.tasks.classification.predictions import LabelPredictions
from hpo.tasks.metrics import score
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
    predictions.write(merged, Path("runs") / name / "predictions" / "trial_0_test.csv")
    best = {"number": 0, "score": score(metric, found)}
    look = {"best": best, "baseline": None, "metric": metric, "examples": ROWS, "trials": 1}
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


def test_with_groups_there_is_no_interval() -> None:
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
