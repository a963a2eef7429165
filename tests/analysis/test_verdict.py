import csv
from types import SimpleNamespace

import numpy as np
import optuna
import pytest

from hpo.analysis.bootstrap import intervals
from hpo.analysis.verdict import take_verdict
from hpo.analysis.verdict_text import sentence, sentences
from hpo.storage.snapshot import read
from hpo.tasks.classification.predictions import LabelPredictions
from hpo.tasks.classification.texts import TextSplit
from hpo.tasks.dataset import Dataset
from hpo.tasks.metrics import score
from hpo.tasks.registry import TASKS


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("hpo.analysis.bootstrap.RESAMPLES", 200)


def outputs(targets, right):
    """Return outputs of a two-class model that is right where `right` says so."""
    predicted = np.where(right, targets, 1 - targets)
    return LabelPredictions("single_label", targets, np.eye(2)[predicted])


def interval(*arguments, **given):
    """Return the one interval between two models, or why there is none."""
    metric, *models = arguments
    return intervals(metric, models, **given)[0]


def test_the_interval_of_a_real_difference_leaves_out_zero():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 400)
    low, high = interval("accuracy", outputs(targets, rng.random(400) < 0.9), outputs(targets, rng.random(400) < 0.7))
    assert 0.1 < low < 0.2 < high < 0.3


def test_the_interval_is_paired():
    """A hard row is drawn for both: the interval is far narrower than that of two models on different rows."""
    rng = np.random.default_rng(5)
    targets, right = np.arange(400) % 2, rng.random(400) < 0.7
    better = right | (np.arange(400) < 40)
    low, high = interval("accuracy", outputs(targets, better), outputs(targets, right))
    low_apart, high_apart = interval("accuracy", outputs(targets, better), outputs(targets, rng.permutation(right)))
    assert 0 < low < high < 0.06
    assert high_apart - low_apart > 2 * (high - low)


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro", "matthews", "roc_auc", "loss"])
def test_the_interval_is_that_of_scoring_the_rows_of_every_resample(monkeypatch, metric):
    monkeypatch.setattr("hpo.analysis.bootstrap.RESAMPLES", 30)
    rng = np.random.default_rng(2)
    targets = rng.integers(0, 3, 50)
    models = [
        LabelPredictions("single_label", targets, rng.normal(size=(50, 3)) + spread * np.eye(3)[targets])
        for spread in (2, 1)
    ]
    rng, differences = np.random.default_rng(0), []
    for _ in range(30):
        rows = rng.integers(0, 50, 50)
        best, baseline = (score(metric, model.take(rows)) for model in models)
        differences.append(best - baseline)
    assert interval(metric, *models) == pytest.approx(np.quantile(differences, [0.025, 0.975]))


def test_the_interval_covers_the_true_difference_about_as_often_as_it_says():
    rng, covered = np.random.default_rng(1), 0
    for _ in range(40):
        targets = rng.integers(0, 2, 150)
        shared = rng.random(150)
        low, high = interval("accuracy", outputs(targets, shared < 0.8), outputs(targets, shared < 0.7))
        covered += low <= 0.1 <= high
    assert 33 <= covered <= 40


# ---------------------------------------------------------------- what so few rows do not tell


def classes(targets, seed=0, spread=1.0, width=2):
    """Return outputs of a model of some classes that is right more often the larger the spread."""
    targets = np.asarray(targets)
    logits = np.random.default_rng(seed).normal(size=(len(targets), width))
    return LabelPredictions("single_label", targets, logits + spread * np.eye(width)[targets])


@pytest.mark.parametrize(
    "metric", ["f1_binary", "precision_binary", "recall_binary", "f1_macro", "matthews", "roc_auc"]
)
def test_a_class_of_too_few_rows_gives_a_reason_and_no_interval(metric):
    few, enough = np.arange(200) < 4, np.arange(200) < 20
    reason = interval(metric, classes(few.astype(int)), classes(few.astype(int), 1), labels=("ham", "spam"))
    assert reason == f"4 of 200 test rows are 'spam', on which {metric} depends"
    low, high = interval(metric, classes(enough.astype(int)), classes(enough.astype(int), 1), labels=("ham", "spam"))
    assert low < high


def test_a_class_that_no_row_is_of_is_one_of_too_few():
    targets = np.arange(100) % 2
    models = [classes(targets, seed, width=3) for seed in (0, 1)]
    assert "0 of 100 test rows are 'c'" in interval("f1_macro", *models, labels=("a", "b", "c"))
    assert isinstance(interval("f1_weighted", *models, labels=("a", "b", "c")), tuple)
    assert isinstance(interval("accuracy", *models, labels=("a", "b", "c")), tuple)


def test_labels_of_several_a_row_that_hardly_occur_are_too_few():
    targets = np.zeros((100, 2), dtype=np.float32)
    targets[:2, 0] = 1
    models = [
        LabelPredictions("multi_label", targets, np.random.default_rng(seed).normal(size=(100, 2))) for seed in (0, 1)
    ]
    assert interval("f1_micro", *models, labels=("a", "b")) == "the 100 test rows have 2 labels in all"
    targets[:50] = 1
    assert isinstance(interval("f1_micro", *models, labels=("a", "b")), tuple)


@pytest.mark.parametrize("task", ["single_label", "regression"])
def test_few_rows_give_a_reason(task):
    metric = {"single_label": "accuracy", "regression": "spearman"}[task]
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 9) if task == "single_label" else rng.normal(size=9)
    models = [
        LabelPredictions(task, targets, rng.normal(size=(9, 2 if task == "single_label" else 1))) for _ in range(2)
    ]
    assert interval(metric, *models) == "there are 9 test rows"


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro", "loss"])
@pytest.mark.parametrize("right", [0.7, 1.0])
def test_no_interval_has_a_width_of_zero(metric, right):
    """Of models that are right on the same rows, and of one that is always right beside one that never is."""
    targets = np.arange(60) % 2
    same = outputs(targets, np.arange(60) < 60 * right)
    assert "gives the same difference" in interval(metric, same, same)
    if right == 1.0:
        assert "gives the same difference" in interval(metric, same, outputs(targets, np.zeros(60, dtype=bool)))


def test_resamples_without_a_score_are_no_selection(monkeypatch):
    monkeypatch.setattr("hpo.tasks.classification.checks.FEWEST_OF_A_CLASS", 1)
    targets = (np.arange(60) < 2).astype(int)
    reason = interval("roc_auc", classes(targets), classes(targets, 1))
    assert reason.endswith("of 200 resamples of the test rows have no score")


# ---------------------------------------------------------------- rows that belong together


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro"])
def test_rows_of_a_group_are_drawn_together(metric):
    """Each row five times over tells no more than each row once, whatever the order of the rows."""
    rng = np.random.default_rng(3)
    targets, right, better = rng.integers(0, 2, 80), rng.random(80) < 0.6, rng.random(80) < 0.75
    rows = rng.permutation(np.repeat(np.arange(80), 5))
    once = [outputs(targets, better), outputs(targets, right)]
    often = [model.take(rows) for model in once]
    width = np.ptp(interval(metric, *once))
    assert np.ptp(interval(metric, *often, groups=rows)) == pytest.approx(width, rel=0.1)
    assert np.ptp(interval(metric, *often)) < 0.6 * width


def test_groups_may_be_text_and_of_any_size_and_must_not_be_few():
    targets = np.arange(60) % 2
    models = [classes(targets, seed) for seed in (0, 1)]
    names = np.array([f"author {i}" for i in np.sqrt(np.arange(60)).astype(int)])
    assert interval("accuracy", *models, groups=names) == "the 60 test rows are of 8 groups"
    names = np.array([f"author {i}" for i in np.arange(60) // 4])
    assert isinstance(interval("accuracy", *models, groups=names), tuple)


# ---------------------------------------------------------------- in words

BASE = {"metric": "accuracy", "examples": 500, "confidence": 0.95, "best": {"number": 3, "score": 0.8}}
COMPARED = {**BASE, "baseline": {"number": 0, "score": 0.78}, "difference": 0.02, "low": -0.01, "high": 0.05}


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (
            {**COMPARED, "shown": False},
            "(-0.01 to +0.05, 95% confidence; it covers other test rows, not other training seeds): no diff",
        ),
        ({**COMPARED, "low": 0.01, "shown": True}, "the best trial is better"),
        ({**COMPARED, "metric": "loss", "low": 0.01, "shown": True}, "the best trial is worse"),
        ({**COMPARED, "baseline": BASE["best"], "shown": False}, "is the best trial: no difference shown"),
        ({**BASE, "baseline": None, "shown": False}, "no published default to compare"),
        ({**BASE, "baseline": None, "baseline_without_value": 0, "shown": False}, "(trial 0) ended without a value"),
    ],
)
def test_a_verdict_says_no_more_than_was_shown(verdict, words):
    assert words in sentence(verdict)


def test_what_cannot_be_told_is_said_with_its_reason():
    said = sentence({**COMPARED, "low": None, "untold": "4 of 200 test rows are 'spam'", "shown": False})
    assert "unknown whether the best trial is better: 4 of 200 test rows are 'spam'" in said
    assert "confidence" not in said


def test_an_interval_of_no_width_that_a_former_version_kept_is_not_repeated():
    said = sentence({**COMPARED, "difference": 0.0, "low": 0.0, "high": 0.0, "shown": False})
    assert "unknown whether the best trial is better" in said
    assert "confidence" not in said


TFIDF = {"says": "TF-IDF with logistic regression", "bounded": None}


@pytest.mark.parametrize(
    ("metric", "tfidf", "words"),
    [
        ("accuracy", {"score": 0.9, "difference": -0.1, "low": -0.2, "high": -0.05, "shown": True}, "does not beat"),
        ("accuracy", {"score": 0.81, "difference": -0.01, "untold": "few", "shown": False}, "does not beat"),
        ("accuracy", {"score": 0.79, "difference": 0.01, "low": -0.1, "high": 0.1, "shown": False}, "is not shown"),
        ("accuracy", {"score": 0.7, "difference": 0.1, "low": 0.05, "high": 0.2, "shown": True}, "is better"),
        ("loss", {"score": 0.7, "difference": 0.1, "low": 0.05, "high": 0.2, "shown": True}, "does not beat"),
        ("loss", {"score": 0.9, "difference": -0.1, "low": -0.2, "high": -0.05, "shown": True}, "is better"),
    ],
)
def test_a_model_that_does_not_beat_the_baseline_is_called_so(metric, tfidf, words):
    look = {**COMPARED, "metric": metric, "shown": False, "references": {"tfidf": TFIDF | tfidf}}
    said = next(said for said in sentences(look) if said.startswith("TF-IDF"))
    assert words in said
    assert ("does not beat" in said) == (words == "does not beat")


def test_a_model_no_better_than_one_answer_is_called_so():
    majority = {"says": "Answering 'ham' always", "score": 0.8, "difference": 0.0}
    look = {**COMPARED, "shown": False, "references": {"majority": majority, "tfidf": None}}
    assert "Answering 'ham' always scores 0.8: the best trial is no better than that" in sentences(look)
    assert "The texts have no words for a TF-IDF baseline" in sentences(look)
    look["references"] = {"majority": {**majority, "score": 0.7}}
    assert "Answering 'ham' always scores 0.7" in sentences(look)


def test_every_look_is_counted_and_shown():
    first = {**COMPARED, "best": {"number": 1, "score": 0.7}, "shown": False, "trials": 4}
    second = {**COMPARED, "shown": False, "trials": 9}
    assert not any("looked at" in said for said in sentences(first, [first]))
    said = sentences(second, [first, second])[-1]
    assert "looked at 2 times (trial 1, 0.7, after 4 trials; trial 3, 0.8, after 9 trials)" in said


def test_labels_that_are_never_predicted_are_named():
    parts = {"count": 12, "never_predicted": [f"l{i}" for i in range(11)], "absent": ["x"], "collapsed": False}
    said = sentences({**COMPARED, "shown": False, "classes": parts})
    assert any("never predicts 11 of 12 labels: 'l0'," in each and each.endswith(" and 1 more") for each in said)
    assert "No test row has 'x': the verdict does not cover it" in said
    said = sentences({**COMPARED, "shown": False, "classes": {**parts, "collapsed": True}})
    assert "The best trial gives every test row the same answer" in said
    of_tags = {**parts, "counted": "entities", "collapsed": True, "collapse": "gives every word the tag 'O'"}
    said = sentences({**COMPARED, "shown": False, "classes": of_tags})
    assert "The best trial gives every word the tag 'O'" in said
    assert "None of the test entities is of 'x': the verdict does not cover it" in said


# ---------------------------------------------------------------- looks


class Array:
    """An array of trials whose kept weights are the share of rows that they are right on."""

    def __init__(self):
        rng = np.random.default_rng(0)
        splits = {}
        for name in ("train", "validation", "test"):
            targets = rng.integers(0, 2, 60)
            splits[name] = TextSplit([f"{('dull', 'fine')[t]} w{i % 7}" for i, t in enumerate(targets)], None, targets)
        data = Dataset("single_label", ("bad", "good"), splits, digest="f" * 64)
        config = SimpleNamespace(generate=None, base_weights=None)
        self.setup = SimpleNamespace(data=data, metric="accuracy", task=TASKS["single_label"], config=config)
        self.scored = []
        self.right_as_trained = None  # of ten rows, if the base was held in few bits

    def of(self, params):
        return self

    def untuned(self, split, *, decoding):
        return None

    def as_trained(self, folder, split):
        if self.right_as_trained is None:
            return None
        return outputs(self.setup.data.splits[split].targets, np.arange(60) % 10 < self.right_as_trained)

    def predictions_of(self, folder, split, *, decoding):
        assert decoding is None
        self.scored.append((int(folder.name), split))
        targets = self.setup.data.splits[split].targets
        return outputs(targets, np.arange(60) % 10 < int((folder / "right").read_text()))


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Return a study, an array, a function that adds a trial, right in so many of ten rows, and one for the verdict."""
    study, array, trials = optuna.create_study(direction="maximize"), Array(), tmp_path / "trials"

    def add(right, **attrs):
        study.add_trial(optuna.create_trial(value=right / 10, user_attrs=attrs))
        folder = trials / str(study.trials[-1].number)
        folder.mkdir(parents=True)
        (folder / "right").write_text(str(right))

    return study, array, add, lambda: take_verdict(study, array, trials)


def test_a_published_default_that_failed_is_said_to_have_no_value(judged):
    study, _, add, look = judged
    study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.FAIL, user_attrs={"baseline": True}))
    add(7)
    found = look()
    assert (found["baseline"], found["baseline_without_value"]) == (None, 0)
    assert "The published default (trial 0) ended without a value" in sentence(found)


def test_what_is_exported_is_compared_with_what_was_trained_on_a_base_in_few_bits(judged):
    _, array, add, look = judged
    array.setup.config.base_weights, array.right_as_trained = "nf4", 9
    add(5, baseline=True)
    add(7)
    found = look()
    assert (found["best"]["score"], found["baseline"]["score"]) == (0.7, 0.5)
    trained = found["as_trained"]
    assert (trained["base"], trained["score"], trained["shown"]) == ("nf4", 0.9, True)
    assert trained["difference"] == pytest.approx(-0.2)
    assert trained["low"] < -0.2 < trained["high"] < 0
    said = sentences(found)[1]
    assert "On the base in nf4, as it was trained, the best trial scores 0.9 on the same rows" in said
    assert said.endswith("what is exported is worse")
    assert {"tfidf", "majority"} <= found["references"].keys()  # it is no baseline
    assert "as_trained" not in found["references"]


def test_a_second_look_does_not_overwrite_the_first(judged):
    study, _, add, look = judged
    add(5, baseline=True)
    add(7)
    first = look()
    add(6)
    assert look() == first
    assert len(read(study).looks) == 1
    add(9)
    second = look()
    assert (first["best"], second["best"]) == ({"number": 1, "score": 0.7}, {"number": 3, "score": 0.9})
    assert (first["trials"], second["trials"]) == (2, 4)
    assert list(read(study).looks) == [first, second]
    assert read(study).verdict == second


def test_nothing_new_scores_nothing_and_fits_nothing(judged, monkeypatch, tmp_path):
    _, array, add, look = judged
    add(5, baseline=True)
    add(7)
    first = look()
    array.scored.clear()
    monkeypatch.setattr("hpo.tasks.classification.baselines.tfidf", lambda *_: pytest.fail("it is fitted once"))
    assert look() == first
    assert array.scored == []
    add(9)
    assert look()["references"]["tfidf"]["score"] == first["references"]["tfidf"]["score"]
    assert sorted(set(array.scored)) == sorted(array.scored) == [(0, "test"), (2, "test"), (2, "validation")]
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == sorted(
        f"trial_{number}_{split}.csv" for number in range(3) for split in ("test", "validation")
    )


def test_damaged_answers_of_the_baseline_are_computed_again(judged, tmp_path):
    _, _, add, look = judged
    add(7)
    first = look()
    (kept,) = (tmp_path / "baselines").iterdir()
    kept.write_bytes(kept.read_bytes()[:-9])
    add(9)
    assert look()["references"]["tfidf"]["score"] == first["references"]["tfidf"]["score"]


def test_a_look_of_a_former_version_stays_and_counts(judged):
    study, _, add, look = judged
    add(5, baseline=True)
    add(7)
    before = {"metric": "accuracy", "examples": 60, "confidence": 0.95, "best": {"number": 1, "score": 0.7}}
    before |= {"baseline": {"number": 0, "score": 0.5}, "difference": 0.2, "low": 0.1, "high": 0.3, "shown": True}
    study.set_user_attr("test", before)
    assert read(study).verdict == before
    assert look()["references"]["majority"]["score"] < 0.7  # the same look, with what that version did not compute
    assert len(read(study).looks) == 1
    add(9)
    look()
    assert [each["best"]["number"] for each in read(study).looks] == [1, 2]
    assert study.user_attrs["test"] == before


def test_the_verdict_has_baselines_and_classes(judged):
    _, _, add, look = judged
    add(7)
    verdict = look()
    assert verdict["baseline"] is None
    assert verdict["references"]["tfidf"]["score"] == 1.0
    assert verdict["references"]["tfidf"]["high"] < 0
    assert any("does not beat this baseline" in said for said in sentences(verdict))
    assert [row["label"] for row in verdict["classes"]["classes"]] == ["bad", "good"]
    assert sum(map(sum, verdict["classes"]["confusion"])) == 60


def test_rows_of_a_group_or_of_equal_texts_are_resampled_together_and_the_worst_group_is_named(judged):
    _, array, add, look = judged
    add(7)
    test = array.setup.data.splits["test"]
    array.setup.data.splits["test"] = TextSplit(["same"] * 60, None, test.targets)
    assert look()["references"]["tfidf"]["untold"] == "the 60 test rows are of 1 group"
    groups = [f"g{row % 12 if row % 10 < 5 else 20 if row % 10 < 7 else 5}" for row in range(60)]
    texts = [f"{text} {row}" for row, text in enumerate(test.texts)]
    array.setup.data.splits["test"] = TextSplit(texts, None, test.targets, members=groups)
    add(8)
    verdict = look()
    assert verdict["references"]["majority"]["low"] < verdict["references"]["majority"]["high"]
    assert verdict["worst_group"]["name"] == "g5"
    assert any(said.startswith("It scores worst on the group 'g5'") for said in sentences(verdict))


def test_a_published_default_that_ends_later_is_compared_too(judged):
    study, _, add, look = judged
    add(7)
    assert look()["baseline"] is None
    add(5, baseline=True)
    assert look()["baseline"] == {"number": 1, "score": 0.5}
    assert len(read(study).looks) == 1


def test_the_best_is_not_compared_with_itself(judged):
    _, _, add, look = judged
    add(7, baseline=True)
    verdict = look()
    assert verdict["baseline"] == verdict["best"]
    assert (verdict["difference"], verdict["shown"], verdict.get("low")) == (0.0, False, None)


def test_the_predictions_are_beside_their_rows(judged, tmp_path):
    _, array, add, look = judged
    add(7)
    look()
    with (tmp_path / "predictions" / "trial_0_test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    test = array.setup.data.splits["test"]
    assert [row["text"] for row in rows] == test.texts
    assert [row["label"] for row in rows] == [("bad", "good")[target] for target in test.targets]
    assert sum(row["predicted"] == row["label"] for row in rows) == 42
    assert {float(row["probability of bad"]) + float(row["probability of good"]) for row in rows} == {1.0}
