from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics

from hpo.tasks.classification import baselines
from hpo.tasks.classification.breakdown import by_class
from hpo.tasks.classification.predictions import LabelPredictions
from hpo.tasks.classification.texts import TextSplit
from hpo.tasks.dataset import Dataset
from hpo.tasks.metrics import score

LABELS = ("bad", "good", "rare")
WORDS = ("dull", "fine", "odd")


def dataset(task: str, rows: int = 90, seed: int = 0) -> Dataset:
    """Return texts that say what their label is."""
    rng = np.random.default_rng(seed)

    def split(count: int) -> TextSplit:
        classes = rng.choice(3, count, p=[0.5, 0.4, 0.1])
        texts = [f"w{rng.integers(9)} {WORDS[c]} w{rng.integers(9)}" for c in classes]
        targets = {
            "single_label": classes,
            "multi_label": np.eye(3, dtype=np.float32)[classes],
            "regression": classes.astype(np.float32),
        }[task]
        return TextSplit(texts, None, targets)

    splits = {name: split(rows) for name in ("train", "validation", "test")}
    return Dataset(task, () if task == "regression" else LABELS, splits)


@pytest.mark.parametrize(
    ("task", "metric"), [("single_label", "accuracy"), ("multi_label", "f1_micro"), ("regression", "pearson")]
)
def test_tfidf_learns_what_words_say(task: str, metric: str) -> None:
    data = dataset(task)
    predict = baselines.tfidf(data, metric)
    assert predict is not None
    assert score(metric, predict(data.splits["test"])) > 0.9


def test_the_majority_is_that_of_train() -> None:
    data = dataset("single_label")
    test = data.splits["test"]
    said = baselines.majority(data)(test)
    most = np.bincount(data.splits["train"].targets).argmax()
    assert (said.predicted == most).all()
    assert score("accuracy", said) == np.mean(test.targets == most)
    shares = np.bincount(data.splits["train"].targets) / len(data.splits["train"])
    np.testing.assert_allclose(said.probabilities, np.tile(shares, (len(test), 1)))
    assert f"{LABELS[most]!r} always" in baselines.names_in_words(data)["majority"]


def test_the_majority_of_several_labels_and_of_numbers() -> None:
    data = dataset("multi_label")
    shares = data.splits["train"].targets.mean(axis=0)
    np.testing.assert_allclose(baselines.majority(data)(data.splits["test"]).probabilities[0], shares, rtol=1e-5)
    numbers = dataset("regression")
    said = baselines.majority(numbers)(numbers.splits["test"])
    assert said.predicted[0] == pytest.approx(numbers.splits["train"].targets.mean())


def test_of_pairs_it_is_the_likeness_that_counts() -> None:
    """Each text alone says nothing of the label; only whether both have words in common does."""
    rng = np.random.default_rng(0)

    def split(count: int) -> TextSplit:
        first = rng.integers(0, 20, (count, 3))
        same = rng.random(count) < 0.5
        second = np.where(same[:, None], first[:, ::-1], (first + 5 + rng.integers(0, 8, (count, 1))) % 20)
        texts = [[" ".join(f"w{word}" for word in row) for row in rows] for rows in (first, second)]
        return TextSplit(*texts, same.astype(np.int64))

    data = Dataset("single_label", ("other", "same"), {n: split(300) for n in ("train", "validation", "test")})
    predict = baselines.tfidf(data, "accuracy")
    assert predict is not None
    assert score("accuracy", predict(data.splits["test"])) > 0.9


@pytest.mark.parametrize("text", ["", "   "])
def test_texts_without_words_have_no_such_baseline(text: str) -> None:
    split = TextSplit([text] * 20, None, np.arange(20) % 2)
    data = Dataset("single_label", ("a", "b"), dict.fromkeys(("train", "validation", "test"), split))
    assert baselines.tfidf(data, "accuracy") is None


def test_scripts_without_blanks_and_signs_are_read() -> None:
    texts = ["好看的电影", "难看的电影"] * 15 + [":)", ":("] * 15
    split = TextSplit(texts, None, np.arange(60) % 2)
    data = Dataset("single_label", ("a", "b"), dict.fromkeys(("train", "validation", "test"), split))
    predict = baselines.tfidf(data, "accuracy")
    assert predict is not None
    assert score("accuracy", predict(split)) == 1.0


def test_its_cost_is_bounded_and_no_class_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "MOST_ROWS", 10)
    data = dataset("single_label", 300)
    data.splits["train"].targets[:] = 0
    data.splits["train"].targets[[17, 170]] = [1, 2]
    sample = baselines._sample(data.splits["train"], "single_label")
    assert len(sample) <= 13
    assert set(sample.targets) == {0, 1, 2}
    assert baselines.tfidf(data, "accuracy") is not None
    assert baselines.sample_in_words(data) == "from a sample of 10 of 300 rows"
    assert baselines.sample_in_words(dataset("single_label", 10)) is None


# ---------------------------------------------------------------- class by class


def test_the_scores_of_each_class_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 200)
    outputs = LabelPredictions("single_label", targets, rng.normal(size=(200, 3)) + np.eye(3)[targets])
    found = by_class(outputs, LABELS)
    assert found is not None
    report = sklearn.metrics.classification_report(
        targets, outputs.predicted, target_names=list(LABELS), output_dict=True
    )
    for row in found["classes"]:
        expected = report[row["label"]]
        assert (row["precision"], row["recall"], row["f1"], row["support"]) == pytest.approx(
            (expected["precision"], expected["recall"], expected["f1-score"], expected["support"])
        )
    assert found["confusion"] == sklearn.metrics.confusion_matrix(targets, outputs.predicted).tolist()


def test_what_is_not_defined_is_not_called_zero() -> None:
    outputs = LabelPredictions("single_label", np.array([0, 0, 1, 1]), np.eye(4)[[0, 0, 0, 3]])
    found = by_class(outputs, ("a", "b", "c", "d"))
    assert found is not None
    assert [row["precision"] for row in found["classes"]] == [pytest.approx(2 / 3), None, None, 0.0]
    assert [row["recall"] for row in found["classes"]] == [1.0, 0.0, None, None]
    assert [row["f1"] for row in found["classes"]] == [0.8, 0.0, None, 0.0]
    assert (found["never_predicted"], found["absent"], found["collapsed"]) == (["b"], ["c", "d"], False)


def test_of_many_classes_the_matrix_is_its_largest_mistakes() -> None:
    targets = np.repeat(np.arange(150), 2)
    said = targets.copy()
    said[:2] = 7
    labels = [f"l{i}" for i in range(150)]
    found = by_class(LabelPredictions("single_label", targets, np.eye(150)[said]), labels)
    assert found is not None
    assert "confusion" not in found
    assert found["mistakes"] == [["l0", "l7", 2]]
    assert (len(found["classes"]), found["count"]) == (100, 150)


def test_of_several_labels_a_row_each_is_a_class_and_of_numbers_there_are_none() -> None:
    targets = np.array([[1, 0], [1, 1], [0, 1]], dtype=np.float32)
    found = by_class(LabelPredictions("multi_label", targets, np.array([[1.0, -1], [1, -1], [-1, -1]])), ("a", "b"))
    assert found is not None
    assert [row["predicted"] for row in found["classes"]] == [2, 0]
    assert found["never_predicted"] == ["b"]
    assert by_class(LabelPredictions("regression", np.zeros(2), np.zeros((2, 1))), ()) is None
