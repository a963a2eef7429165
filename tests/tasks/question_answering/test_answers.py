from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo.tasks.question_answering import answers as module
from hpo.tasks.question_answering.answers import N_BEST, Answers, best_answers
from hpo.tasks.question_answering.windows import Windows

TEXT = "".join(f"word{i:03} " for i in range(100))  # token i of a context is TEXT[8 * i : 8 * i + 7]


def windows_of(shape: list[list[tuple[int, int, int]]]) -> Windows:
    """Return the windows of questions: tokens before the context, tokens of the context, and its first word."""
    parts, example = [], []
    for question, parts_of_question in enumerate(shape):
        for before, count, first in parts_of_question:
            begins = 8 * np.arange(first, first + count)
            context = np.stack([begins, begins + 7], axis=1)
            parts.append(np.concatenate([np.zeros((before, 2)), context, np.zeros((1, 2))]).astype(np.int32))
            example.append(question)
    zeros = np.zeros(len(parts), dtype=int)
    return Windows(
        inputs={},
        offsets=np.concatenate(parts),
        lengths=np.array([len(part) for part in parts]),
        example=np.array(example),
        null=zeros,
        starts=zeros,
        ends=zeros,
        lost=(),
    )


def drawn(rng: np.random.Generator, questions: int, low: int = 1, high: int = 60) -> Windows:
    """Return windows of questions with one to four windows each, of random lengths."""
    return windows_of(
        [
            [
                (int(rng.integers(1, 12)), int(rng.integers(low, high)), int(rng.integers(40)))
                for _ in range(rng.integers(1, 5))
            ]
            for _ in range(questions)
        ]
    )


def logits(rng: np.random.Generator, windows: Windows, dtype: Any = np.float32, scale: float = 3) -> tuple[Any, Any]:
    shape = (len(windows), int(windows.lengths.max()) + 3)
    start, end = (rng.normal(scale=scale, size=shape).astype(dtype) for _ in range(2))
    return start, end


def reference(
    start_logits: Any, end_logits: Any, windows: Windows, null: bool, max_answer_length: int
) -> list[dict[str, Any]]:
    """Return the answers by the rules of transformers' `postprocess_qa_predictions`, window by window.

    Tokens outside a context have no offsets there; a question without a candidate has none here, where that function
    puts the text `empty` with the score 0.
    """
    found = []
    every = windows.padded_offsets(slice(0, len(windows)), int(windows.lengths.max()))
    for question in range(windows.example[-1] + 1):
        candidates, lowest = [], None
        for window in np.flatnonzero(windows.example == question):
            length = windows.lengths[window]
            start, end = start_logits[window, :length], end_logits[window, :length]
            offsets = [tuple(pair) if pair[1] > pair[0] else None for pair in every[window, :length].tolist()]
            if lowest is None or lowest[0] > start[0] + end[0]:
                lowest = (start[0] + end[0], 0, 0)
            for first in np.argsort(start)[-1 : -N_BEST - 1 : -1].tolist():
                for last in np.argsort(end)[-1 : -N_BEST - 1 : -1].tolist():
                    if offsets[first] is None or offsets[last] is None:
                        continue
                    if last < first or last - first + 1 > max_answer_length:
                        continue
                    candidates.append((start[first] + end[last], offsets[first][0], offsets[last][1]))
        if null:
            candidates.append(lowest)
        kept = sorted(candidates, key=lambda each: each[0], reverse=True)[:N_BEST]
        if null and lowest not in kept:
            kept.append(lowest)
        scores = np.array([each[0] for each in kept])
        shares = np.exp(scores - scores.max()) if len(scores) else scores
        best = next((i for i, each in enumerate(kept) if each[2] > each[1]), None)
        found.append(
            {
                "span": None if best is None else kept[best][1:],
                "score": None if best is None else kept[best][0],
                "probability": None if best is None else shares[best] / shares.sum(),
                "difference": None if best is None or not null else lowest[0] - kept[best][0],
            }
        )
    return found


def check(found: Answers, expected: list[dict[str, Any]], null: bool) -> int:
    """Compare the answers of all questions that have a candidate; return how many have none."""
    missing = 0
    for question, each in enumerate(expected):
        if each["span"] is None:
            missing += 1
            continue
        assert (found.starts[question], found.ends[question]) == each["span"]
        assert found.scores[question] == each["score"]
        assert found.probabilities(null)[0][question] == pytest.approx(each["probability"], rel=1e-5)
        if null:
            assert found.null_differences[question] == each["difference"]
    assert null or not found.probabilities(null)[1].any()
    assert len(found.scores) == len(expected)
    return missing


@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_answers_are_those_of_postprocess_qa_predictions(null, dtype, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 37)
    rng = np.random.default_rng(0)
    windows = drawn(rng, 120)
    start, end = logits(rng, windows, dtype)
    for longest in (1, 4, 30):
        expected = reference(start, end, windows, null, longest)
        missing = check(best_answers(start, end, windows, longest), expected, null)
        assert missing < 60


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.integers(1, 40), st.sampled_from([0.1, 3.0, 30.0]))
def test_answers_are_those_of_the_reference_for_any_windows(seed, null, longest, scale):
    rng = np.random.default_rng(seed)
    windows = drawn(rng, 6)
    start, end = logits(rng, windows, scale=scale)
    check(best_answers(start, end, windows, longest), reference(start, end, windows, null, longest), null)


ONE = [[(2, 4, 0)]]  # CLS, question, four words, SEP
#        window     CLS  q  w0 w1 w2 w3 SEP
TABLE = {
    "the best pair": (ONE, [[0, 0, 1, 9, 0, 0, 0]], [[0, 0, 0, 0, 8, 1, 0]], 30, ("word001 word002", 17, -17)),
    "an end before the start": (ONE, [[0, 0, 1, 0, 9, 0, 0]], [[0, 0, 0, 9, 2, 0, 0]], 30, ("word002", 11, -11)),
    "too long": (ONE, [[0, 0, 9, 2, 0, 0, 0]], [[0, 0, 0, 0, 9, 0, 0]], 2, ("word001 word002", 11, -11)),
    "not in the context": (ONE, [[9, 9, 0, 3, 0, 0, 9]], [[9, 9, 0, 2, 0, 0, 9]], 30, ("word001", 5, 13)),
    "equal scores: the first start, then the first end": (
        ONE,
        [[0, 0, 0, 5, 5, 0, 0]],
        [[0, 0, 0, 0, 5, 5, 0]],
        30,
        ("word001 word002", 10, -10),
    ),
    "the better window; of no answer the smaller score": (
        [[(2, 4, 0), (2, 4, 50)]],
        [[3, 0, 2, 0, 0, 0, 0], [1, 0, 0, 0, 7, 0, 0]],
        [[3, 0, 2, 0, 0, 0, 0], [1, 0, 0, 0, 1, 4, 0]],
        30,
        ("word052 word053", 11, -9),
    ),
}


@pytest.mark.parametrize(("shape", "start", "end", "longest", "expected"), TABLE.values(), ids=TABLE)
def test_a_table_of_answers(shape, start, end, longest, expected):
    found = best_answers(np.array(start, float), np.array(end, float), windows_of(shape), longest)
    assert (*found.texts([TEXT]), found.scores[0], found.null_differences[0]) == expected


def test_the_probability_counts_no_answer_only_where_it_is_possible():
    start, end = np.log([[[6.0, 1, 1, 2, 1]], [[1.0, 1, 1, 3, 1]]])  # CLS, question, two words, SEP
    windows = windows_of([[(2, 2, 0)]])
    # Spans: word 0 with 1 * 1, words 0 to 1 with 1 * 3, word 1 with 2 * 3; no answer with 6 * 1.
    found = best_answers(start, end, windows)
    np.testing.assert_allclose(found.probabilities(False), [[6 / 10], [0]])
    np.testing.assert_allclose(found.probabilities(True), [[6 / 16], [6 / 16]])


def test_a_question_without_a_candidate_gets_the_best_of_all_its_spans():
    shape = [[(25, 30, 0)], [(1, 4, 0)], [(25, 5, 0), (25, 6, 20)]]
    windows = windows_of(shape)
    rng = np.random.default_rng(1)
    start, end = logits(rng, windows)
    for window in (0, 2, 3):
        start[window, :25] = end[window, :25] = 50  # the question has all of the largest logits
    assert [each["span"] is None for each in reference(start, end, windows, False, 3)] == [True, False, True]
    found = best_answers(start, end, windows, 3)
    for question, rows in ((0, [0]), (2, [2, 3])):
        spans = []
        for window in rows:
            before, count, word = [part for parts in shape for part in parts][window]
            for first in range(before, before + count):
                for last in range(first, min(first + 3, before + count)):
                    begin, stop = 8 * (word + first - before), 8 * (word + last - before) + 7
                    spans.append((start[window, first] + end[window, last], begin, stop))
        assert (found.scores[question], found.starts[question], found.ends[question]) == max(spans)
        assert found.null_differences[question] == 100 - max(spans)[0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_what_is_beyond_a_window_and_other_questions_change_nothing(seed):
    rng = np.random.default_rng(seed)
    windows = drawn(rng, 4)
    start, end = logits(rng, windows)
    found = best_answers(start, end, windows)
    beyond = np.arange(start.shape[1]) >= windows.lengths[:, None]
    start[beyond], end[beyond] = np.nan, 1e9
    again = best_answers(start, end, windows)
    first = windows.example == 0
    tokens = int(windows.lengths[first].sum())
    alone = Windows({}, windows.offsets[:tokens], *(getattr(windows, name)[first] for name in (
        "lengths", "example", "null", "starts", "ends")), lost=())  # fmt: skip
    only = best_answers(start[first], end[first], alone)
    for name, value in vars(found).items():
        np.testing.assert_array_equal(getattr(again, name), value)
        np.testing.assert_array_equal(getattr(only, name), value[:1])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_an_answer_is_a_span_of_its_context_and_a_probability(seed):
    rng = np.random.default_rng(seed)
    windows = drawn(rng, 5)
    found = best_answers(*logits(rng, windows), windows, 7)
    (best, null), (alone, none) = found.probabilities(True), found.probabilities(False)
    assert ((best > 0) & (best <= alone) & (alone <= 1 + 1e-6) & (none == 0)).all()
    np.testing.assert_allclose(null, best * np.exp(found.null_differences.astype(float)), rtol=1e-5)
    assert (best + null <= 1 + 1e-6).all()
    for text in found.texts([TEXT] * 5):
        assert 1 <= len(text.split()) <= 7
        assert text == text.strip()
