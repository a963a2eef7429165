"""Cheap baselines that a fine-tuned model should beat: the most frequent answer, and TF-IDF with a linear model.

Both learn from the training rows of the trials. Their cost is bounded by size, not by time, so that their results do
not depend on the machine: at most `MOST_ROWS` rows, `MOST_CHARACTERS` of a text, and `MOST_FEATURES` features a text,
fewer where there are many classes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from hpo.core.formatting import plain
from hpo.tasks.classification.predictions import LabelPredictions
from hpo.tasks.classification.texts import TextSplit
from hpo.tasks.dataset import Dataset
from hpo.tasks.metrics import METRICS, score
from hpo.tasks.task import Reference

Array = np.ndarray[Any, Any]

MOST_ROWS = 10_000
MOST_CHARACTERS = 2_000
MOST_FEATURES = 20_000
MOST_WEIGHTS = 500_000  # features times classes
MOST_ITERATIONS = 100
STRENGTHS = (1.0, 10.0)  # inverse regularisation; the one with the better validation score is taken

# Words, single characters of scripts without blanks, and punctuation: ! and :-) carry meaning too.
TOKEN = r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]"

log = logging.getLogger(__name__)

Predict = Callable[[TextSplit], LabelPredictions]


def references(data: Dataset, metric: str, folder: Path) -> dict[str, Reference | None]:
    """Return the baselines on the test split; None in place of TF-IDF where the texts have no words.

    The predictions of TF-IDF are stored in a folder, under the digest of the data, for later looks.
    """
    test, words = data.splits["test"], names_in_words(data)
    found: dict[str, Reference | None] = {"majority": Reference(words["majority"], majority(data)(test)), "tfidf": None}
    path = folder / f"tfidf_{metric}_{data.digest[:16]}.safetensors"
    logits = _stored(path, (len(test), max(1, len(data.labels))))
    if logits is None:
        log.info("fitting the TF-IDF baseline")
        predict = tfidf(data, metric)
        if predict is None:
            return found
        logits = predict(test).logits
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"logits": np.ascontiguousarray(logits)}, path)
    predictions = LabelPredictions(data.task, test.targets, logits)
    return found | {"tfidf": Reference(words["tfidf"], predictions, sample_in_words(data) or "")}


def _stored(path: Path, shape: tuple[int, int]) -> Array | None:
    try:
        logits: Array = load_file(path)["logits"]
    except (OSError, KeyError, SafetensorError):  # missing or damaged: the caller computes them
        return None
    return logits if logits.shape == shape and logits.dtype.kind == "f" else None


def majority(data: Dataset) -> Predict:
    """Return a model that gives every row the most frequent answer of train; for regression, the mean.

    Its probabilities are the shares of the classes in train.
    """
    targets = data.splits["train"].targets
    if data.task == "single_label":
        logits = _log(np.bincount(targets, minlength=len(data.labels)) / len(targets))
    elif data.task == "multi_label":
        logits = _log_odds(targets.mean(axis=0))
    else:
        logits = np.array([targets.mean()])
    return lambda split: LabelPredictions(data.task, split.targets, np.tile(logits, (len(split), 1)))


def tfidf(data: Dataset, metric: str) -> Predict | None:
    """Fit TF-IDF of words and pairs of words with logistic regression; for regression, with ridge regression.

    For two texts, the features are the TF-IDF of each over one vocabulary, their product, and its sum, the similarity.
    For several labels a row, each label has a regression of its own.

    Args:
        data: The data of a study; validation chooses among `STRENGTHS`.
        metric: Name in `METRICS`.

    Returns:
        The fitted model; None if the texts have no words.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    train = _sample(data.splits["train"], data.task)
    features = min(MOST_FEATURES, max(100, MOST_WEIGHTS // max(1, len(data.labels))))
    vectorizer = TfidfVectorizer(token_pattern=TOKEN, ngram_range=(1, 2), sublinear_tf=True, max_features=features)
    try:
        first = vectorizer.fit_transform(_cut(train.texts) + _cut(train.pairs or []))
    except ValueError:  # an empty vocabulary
        return None
    inputs = first if train.pairs is None else _pair_features(first[: len(train)], first[len(train) :])
    validation = data.splits["validation"]
    held_out = _features(vectorizer, validation)
    sign = 1 if METRICS[metric].direction == "maximize" else -1

    def validation_score(model: Any) -> float:
        value = score(metric, LabelPredictions(data.task, validation.targets, _logits(data, model, held_out)))
        return -np.inf if np.isnan(value) else sign * value

    best = max((_fitted(data, inputs, train.targets, strength) for strength in STRENGTHS), key=validation_score)
    return lambda split: LabelPredictions(data.task, split.targets, _logits(data, best, _features(vectorizer, split)))


def names_in_words(data: Dataset) -> Mapping[str, str]:
    """Return each baseline's name in words."""
    targets = data.splits["train"].targets
    if data.task == "regression":
        return {"majority": "Answering the mean of train always", "tfidf": "TF-IDF with ridge regression"}
    if data.task == "multi_label":
        return {"majority": "Giving each label its more frequent answer", "tfidf": "TF-IDF with logistic regression"}
    most = data.labels[int(np.bincount(targets).argmax())]
    return {"majority": f"Answering {plain(most)!r} always", "tfidf": "TF-IDF with logistic regression"}


def sample_in_words(data: Dataset) -> str | None:
    """Return how many rows the TF-IDF baseline learned from; None if it learned from all."""
    rows = len(data.splits["train"])
    return f"from a sample of {MOST_ROWS:,} of {rows:,} rows" if rows > MOST_ROWS else None


def _sample(split: TextSplit, task: str) -> TextSplit:
    """Return about `MOST_ROWS` rows, drawn with a fixed seed, with at least one of every class."""
    if len(split) <= MOST_ROWS:
        return split
    rows = np.random.default_rng(0).permutation(len(split))[:MOST_ROWS]
    if task == "single_label":
        rows = np.union1d(rows, np.unique(split.targets, return_index=True)[1])
    pairs = None if split.pairs is None else [split.pairs[row] for row in rows]
    return TextSplit([split.texts[row] for row in rows], pairs, split.targets[rows])


def _cut(texts: Sequence[str]) -> list[str]:
    return [text[:MOST_CHARACTERS] for text in texts]


def _features(vectorizer: Any, split: TextSplit) -> Any:
    """Return the features of n rows, a sparse matrix [n, features]."""
    first = vectorizer.transform(_cut(split.texts))
    return first if split.pairs is None else _pair_features(first, vectorizer.transform(_cut(split.pairs)))


def _pair_features(first: Any, second: Any) -> Any:
    """Return the features of n pairs [n, 3 words + 1], given those of each text [n, words]."""
    import scipy.sparse

    common = first.multiply(second).tocsr()
    return scipy.sparse.hstack([first, second, common, common.sum(axis=1)], format="csr")


def _fitted(data: Dataset, inputs: Any, targets: Array, strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier

    model: Any = Ridge(alpha=1 / strength)
    if data.task != "regression":
        model = LogisticRegression(C=strength, max_iter=MOST_ITERATIONS, tol=1e-3)
    if data.task == "multi_label":
        model = OneVsRestClassifier(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of too few iterations, and of labels that no row or every row has
        return model.fit(inputs, targets)


def _logits(data: Dataset, model: Any, inputs: Any) -> Array:
    if data.task == "regression":
        return np.asarray(model.predict(inputs)).reshape(-1, 1)
    probabilities = model.predict_proba(inputs)
    return _log(probabilities) if data.task == "single_label" else _log_odds(probabilities)


def _log(shares: Array) -> Array:
    return np.asarray(np.log(np.maximum(shares, 1e-12)))


def _log_odds(shares: Array) -> Array:
    inside = np.clip(shares, 1e-12, 1 - 1e-12)
    return np.asarray(np.log(inside / (1 - inside)))
