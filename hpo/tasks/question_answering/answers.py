"""The best answer of each question, from the start and end logits of all its windows.

As transformers' `postprocess_qa_predictions` (`examples/pytorch/question-answering/utils_qa.py`): in each window the
tokens with the largest start and end logits are combined, and the best spans of all windows of a question are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from hpo.tasks.question_answering.windows import Windows

Array = np.ndarray[Any, Any]

N_BEST = 20  # starts and ends of a window, and answers of a question, that are looked at
CHUNK = 2048  # windows that are combined at once, to bound the memory


@dataclass(frozen=True)
class Answers:
    """The best answer of each of q questions that is not empty, and the score of no answer.

    Attributes:
        starts: [q] its first character in the context.
        ends: [q] its end in the context.
        scores: [q] its start logit plus its end logit.
        n_best: [q, N_BEST] the scores of the best answers that are not empty, -inf where there are fewer.
        null: [q] the score of no answer: the smallest of any window, for the answer may be in one window only.
    """

    starts: Array
    ends: Array
    scores: Array
    n_best: Array
    null: Array

    @property
    def null_differences(self) -> Array:
        """[q]: score of no answer minus score of the best answer."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.null - self.scores)

    def probabilities(self, unanswerable: bool) -> tuple[Array, Array]:
        """Return the probabilities of the best answer and of no answer, each [q].

        They are a softmax over the scores of the N_BEST best answers. No answer is one of these if it is better than
        the last, and one more if it is not.

        Args:
            unanswerable: Whether no answer is possible; if not, its probability is 0.
        """
        scores, null = self.n_best, np.where(unanswerable, self.null, -np.inf)
        scores = np.where(np.arange(N_BEST) == N_BEST - 1, np.where(scores < null[:, None], -np.inf, scores), scores)
        scores = np.concatenate([scores, null[:, None]], axis=1)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        total = shares.sum(axis=1)
        return shares[:, 0] / total, shares[:, -1] / total

    def take(self, questions: Array) -> Answers:
        """Return the answers of some questions."""
        return Answers(**{name: array[questions] for name, array in vars(self).items()})

    def texts(self, contexts: Sequence[str]) -> list[str]:
        """Return the answers' texts, given the q contexts."""
        spans = zip(contexts, self.starts.tolist(), self.ends.tolist(), strict=True)
        return [context[start:end] for context, start, end in spans]


@np.errstate(invalid="ignore")  # the logits of a model that has diverged are not finite; that is told later
def best_answers(start_logits: Array, end_logits: Array, windows: Windows, max_answer_length: int = 30) -> Answers:
    """Return the best answer of each question.

    Equal scores are decided by the order of windows, then of start, then of end logits. Where
    no combined pair of a question is a span, transformers' function answers `empty`; here all its spans are compared.

    Args:
        start_logits: [n windows, length] for each token to be the first of the answer; what is beyond a window's
            length is not read.
        end_logits: [n windows, length] for each token to be the last.
        windows: The windows, of which every question has one or more with a token of its context.
        max_answer_length: Largest number of tokens of an answer.
    """
    columns = np.arange(start_logits.shape[1])
    parts = []
    for first in range(0, len(windows), CHUNK):
        chunk = slice(first, first + CHUNK)
        inside = columns < windows.lengths[chunk, None]
        start, end = (np.where(inside, logits[chunk], -np.inf) for logits in (start_logits, end_logits))
        parts.append(_spans(start, end, windows.padded_offsets(chunk, len(columns)), max_answer_length))
    spans = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    _fill_empty(spans, start_logits, end_logits, windows, max_answer_length)
    rows = np.arange(len(windows))
    null = start_logits[rows, windows.null] + end_logits[rows, windows.null]
    return _combined(*spans, example=windows.example, null=null)


def _spans(start: Array, end: Array, offsets: Array, max_answer_length: int) -> tuple[Array, Array, Array]:
    """Return score, first character and end of the N_BEST best spans of each window, [windows, N_BEST].

    Pairs that are no span have the score -inf.
    """
    firsts, lasts = _largest(start), _largest(end)
    of_context = offsets[..., 1] > offsets[..., 0]
    length = lasts[:, None, :] - firsts[:, :, None] + 1
    valid = (length >= 1) & (length <= max_answer_length)
    valid &= _at(of_context, firsts)[:, :, None] & _at(of_context, lasts)[:, None, :]
    pairs = np.where(valid, _at(start, firsts)[:, :, None] + _at(end, lasts)[:, None, :], -np.inf)
    pairs = pairs.reshape(len(pairs), -1)
    best = _largest(pairs)
    scores, width = _at(pairs, best), lasts.shape[1]
    firsts, lasts = _at(firsts, best // width), _at(lasts, best % width)
    return scores, _at(offsets[..., 0], firsts), _at(offsets[..., 1], lasts)


def _largest(values: Array) -> Array:
    """Return the positions of the N_BEST largest values of each row, the largest first; of equal ones the first."""
    return np.argsort(-values, axis=1, kind="stable")[:, :N_BEST]


def _at(values: Array, positions: Array) -> Array:
    return np.take_along_axis(values, positions, axis=1)


def _fill_empty(
    spans: tuple[Array, ...], start_logits: Array, end_logits: Array, windows: Windows, max_answer_length: int
) -> None:
    """Give the windows of questions without any span their best spans, of all tokens of the context."""
    has_span = np.zeros(int(windows.example[-1]) + 1, dtype=bool)
    np.logical_or.at(has_span, windows.example, np.isfinite(spans[0][:, 0]))
    for window in np.flatnonzero(~has_span[windows.example]):
        offsets = windows.padded_offsets(slice(window, window + 1), int(windows.lengths[window]))[0]
        tokens = np.flatnonzero(offsets[:, 1] > offsets[:, 0])
        if len(tokens):
            pairs = start_logits[window][tokens, None] + end_logits[window][tokens]
            length = tokens[None, :] - tokens[:, None] + 1
            pairs = np.where((length >= 1) & (length <= max_answer_length), pairs, -np.inf)
            first, last = np.unravel_index(pairs.argmax(), pairs.shape)
            best = pairs[first, last], offsets[tokens[first], 0], offsets[tokens[last], 1]
            for column, value in zip(spans, best, strict=True):
                column[window, 0] = value


def _combined(scores: Array, begins: Array, ends: Array, *, example: Array, null: Array) -> Answers:
    """Return the best of all spans of each question.

    Args:
        scores: [n windows, spans], -inf for none.
        begins: [n windows, spans] first characters.
        ends: [n windows, spans] ends.
        example: [n windows] question of each window, ascending.
        null: [n windows] score of no answer.
    """
    question = np.repeat(example, scores.shape[1])
    order = np.lexsort((-scores.ravel(), question))  # by question, the best first; stable
    counts = np.bincount(question)
    heads = np.cumsum(counts) - counts
    rank = np.arange(len(order)) - np.repeat(heads, counts)
    looked_at = rank < N_BEST
    n_best = np.full((len(counts), N_BEST), -np.inf)
    n_best[question[looked_at], rank[looked_at]] = scores.ravel()[order[looked_at]]
    smallest = np.full(len(counts), np.inf, dtype=null.dtype)
    np.minimum.at(smallest, example, null)
    best = order[heads]
    return Answers(begins.ravel()[best], ends.ravel()[best], scores.ravel()[best], n_best, smallest)
