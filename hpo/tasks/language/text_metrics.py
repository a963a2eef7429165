"""Metrics of generated text, by sums that add up over texts: a bootstrap is one product.

ROUGE (Lin, 2004) is that of `rouge-score`, with its stemmer; BLEU (Papineni et al., 2002) and chrF (Popovic, 2015) are
those of `sacrebleu`, over the whole corpus, from 0 to 100. Each equals what the library's own command prints.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from hpo.core.errors import MissingExtraError
from hpo.tasks.language.predictions import TextPredictions
from hpo.tasks.metric import Metric, summed

Array = np.ndarray[Any, Any]

TASKS = ("causal_lm", "seq2seq")
LIBRARIES = ("rouge_score", "sacrebleu")

CHOSEN_BY = "chrf"
"""The score by which a way of decoding is chosen. It compares letters of all scripts, and agrees better with people
than BLEU (Kocmi et al., 2021); ROUGE's words have the letters a to z and digits only."""


def refuse_missing_libraries() -> None:
    """Refuse to score generated text without the libraries that do it.

    Raises:
        MissingExtraError: One of them is not installed.
    """
    if not all(find_spec(library) for library in LIBRARIES):
        raise MissingExtraError("Scoring generated text (generate)", "text")


# ---------------------------------------------------------------- ROUGE


@cache
def _rouge(name: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    # With a tokenizer of its own making, it writes a line through absl, which then prints all messages of the program.
    return RougeScorer([name], tokenizer=DefaultTokenizer(use_stemmer=True))


def _rouge_counts(name: str) -> Callable[[TextPredictions], Array]:
    """Return the function that gives [n, 2]: the F-measure of each text, and 1."""

    def counts(predictions: TextPredictions) -> Array:
        scorer = _rouge(name)
        pairs = zip(predictions.expected, predictions.written, strict=True)
        return np.array([[scorer.score(wanted, found)[name].fmeasure, 1.0] for wanted, found in pairs])

    return counts


# ---------------------------------------------------------------- BLEU and chrF


@cache
def _sacrebleu(name: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return BLEU(force=True) if name == "bleu" else CHRF()  # `force`: no warning about texts that end in " ."


def _sacrebleu_counts(name: str) -> Callable[[TextPredictions], Array]:
    """Return the function that gives the library's statistics of each text, [n, k]: n-grams and lengths."""

    def counts(predictions: TextPredictions) -> Array:
        statistics = _sacrebleu(name)._extract_corpus_statistics(predictions.written, [list(predictions.expected)])
        return np.array(statistics, dtype=float)

    return counts


def _sacrebleu_value(name: str) -> Callable[[Array], float]:
    def value(sums: Array) -> float:
        return float(_sacrebleu(name)._compute_score_from_stats(sums.astype(int).tolist()).score)

    return value


def _mean(sums: Array) -> float:
    return float(sums[0] / sums[1])


_ROUGE = {
    "rouge1": ("rouge", "rouge_1"),
    "rouge2": ("rouge_2",),
    "rougeL": ("rouge_l",),
    "rougeLsum": ("rouge_lsum",),
}
_SACREBLEU = {"bleu": ("sacrebleu",), "chrf": ("chrf2",)}

METRICS: dict[str, Metric] = {
    **{
        name: summed(_rouge_counts(name), _mean, TASKS, aliases=aliases, generated=TASKS)
        for name, aliases in _ROUGE.items()
    },
    **{
        name: summed(_sacrebleu_counts(name), _sacrebleu_value(name), TASKS, aliases=aliases, generated=TASKS)
        for name, aliases in _SACREBLEU.items()
    },
}
"""Name -> metric; the names of their libraries are among the aliases."""
