"""What a model has to beat to be worth its cost: the most frequent answer, and TF-IDF with a linear model.

Both learn from the rows that the trials learn from. Their cost is bounded by size, not by time, so that they are the
same everywhere: at most `MOST_ROWS` rows, `MOST_CHARACTERS` of a text, and `MOST_FEATURES` features a text, fewer where
there are many classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo.core.formatting import plain
from hpo.tasks.classification import Outputs
from hpo.tasks.metrics import METRICS, score

if TYPE_CHECKING:
    from hpo.finetune.data.sources import Dataset, Split

Array = np.ndarray[Any, Any]

MOST_ROWS = 10_000
MOST_CHARACTERS = 2_000
MOST_FEATURES = 20_000
MOST_WEIGHTS = 500_000  # features times classes
MOST_ITERATIONS = 100
STRENGTHS = (1.0, 10.0)  # inverse regularisation; the better one on the validation split is taken

# Words, single characters of scripts without blanks, and signs: ! and :-) say something of a text too.
TOKEN = r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]"

Predict = Callable[["Split"], Outputs]


def majority(data: Dataset) -> Predict:
    """Return a model that gives every row the answer that is most frequent in train: for regression, the mean.

    Its probabilities are the shares of the classes in train.
    """
    targets = data.splits["train"].targets
    if data.task == "single_label":
        logits = _log(np.bincount(targets, minlength=len(data.labels)) / len(targets))
    elif data.task == "multi_label":
        logits = _log_odds(targets.mean(axis=0))
    else:
        logits = np.array([targets.mean()])
    return lambda split: Outputs(data.task, split.targets, np.tile(logits, (len(split), 1)))


def tfidf(data: Dataset, metric: str) -> Predict | None:
    """Fit TF-IDF of words and pairs of words with logistic regression; for regression, with ridge regression.

    Of two texts, each has its own TF-IDF over one vocabulary, beside their product and its sum, their similarity.
    Several labels a row are each a regression of their own.

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
    inputs = first if train.pairs is None else _beside(first[: len(train)], first[len(train) :])
    validation = data.splits["validation"]
    held_out = _vectors(vectorizer, validation)
    sign = 1 if METRICS[metric].direction == "maximize" else -1

    def value(model: Any) -> float:
        found = score(metric, Outputs(data.task, validation.targets, _logits(data, model, held_out)))
        return -np.inf if np.isnan(found) else sign * found

    best = max((_fitted(data, inputs, train.targets, strength) for strength in STRENGTHS), key=value)
    return lambda split: Outputs(data.task, split.targets, _logits(data, best, _vectors(vectorizer, split)))


def says(data: Dataset) -> Mapping[str, str]:
    """Return what each of them is, in words."""
    targets = data.splits["train"].targets
    if data.task == "regression":
        return {"majority": "Answering the mean of train always", "tfidf": "TF-IDF with ridge regression"}
    if data.task == "multi_label":
        return {"majority": "Giving each label its more frequent answer", "tfidf": "TF-IDF with logistic regression"}
    most = data.labels[int(np.bincount(targets).argmax())]
    return {"majority": f"Answering {plain(most)!r} always", "tfidf": "TF-IDF with logistic regression"}


def bounded(data: Dataset) -> str | None:
    """Return how much of train the TF-IDF baseline learned from, where that is not all; or None."""
    rows = len(data.splits["train"])
    return f"from a sample of {MOST_ROWS:,} of {rows:,} rows" if rows > MOST_ROWS else None


def _sample(split: Split, task: str) -> Split:
    """Return at most `MOST_ROWS` rows, drawn with a fixed seed, and one of every class at least."""
    if len(split) <= MOST_ROWS:
        return split
    rows = np.random.default_rng(0).permutation(len(split))[:MOST_ROWS]
    if task == "single_label":
        rows = np.union1d(rows, np.unique(split.targets, return_index=True)[1])
    pairs = None if split.pairs is None else [split.pairs[row] for row in rows]
    return type(split)([split.texts[row] for row in rows], pairs, split.targets[rows])


def _cut(texts: Sequence[str]) -> list[str]:
    return [text[:MOST_CHARACTERS] for text in texts]


def _vectors(vectorizer: Any, split: Split) -> Any:
    """Return the features of n rows, a sparse matrix [n, features]."""
    first = vectorizer.transform(_cut(split.texts))
    return first if split.pairs is None else _beside(first, vectorizer.transform(_cut(split.pairs)))


def _beside(first: Any, second: Any) -> Any:
    """Return the features of n pairs, given those of both texts [n, words]: [n, 3 words + 1]."""
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
        warnings.simplefilter("ignore")  # of iterations that ran out, and of labels that no row or every row has
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
