from __future__ import annotations

import collections
import re
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.tasks.question_answering.scoring import RATES, Gold, Scores, best_threshold, normalized, score

# ---------------------------------------------------------------- the rules of the official scripts, as a reference


def official_normal(s):
    s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", s).split())


def official_f1(prediction, gold, version):
    got, wanted = official_normal(prediction).split(), official_normal(gold).split()
    if version == 2 and (not got or not wanted):
        return float(got == wanted)
    same = sum((collections.Counter(got) & collections.Counter(wanted)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(got), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def official(prediction, golds, version):
    if version == 2:
        golds = [gold for gold in golds if official_normal(gold)] or [""]
    exact = max(float(official_normal(prediction) == official_normal(gold)) for gold in golds)
    return exact, max(official_f1(prediction, gold, version) for gold in golds)


def official_threshold(raw, differences, has_answer):
    """The sweep of version 2.0, in which every prediction has words."""
    total = best = float(sum(not has for has in has_answer))
    threshold = 0.0
    for i in sorted(range(len(raw)), key=lambda i: differences[i]):
        total += raw[i] if has_answer[i] else -1
        if total > best:
            best, threshold = total, differences[i]
    return best / len(raw), threshold


# ---------------------------------------------------------------- tests

WORDS = st.lists(st.sampled_from(["The", "a", "an", "cat", "Cat!", "mat,", "-", "x.y", "é", "theatre"]), max_size=4)
TEXTS = WORDS.map(" ".join)


@pytest.mark.parametrize(
    ("predicted", "golds", "exact", "f1"),
    [
        ("The cat.", ["cat"], 1, 1),
        ("a  CAT\n", ["the cat!"], 1, 1),
        ("the theatre", ["atre"], 0, 0),
        ("cat on mat", ["cat"], 0, 0.5),
        ("cat cat", ["cat"], 0, 2 / 3),
        ("cat cat", ["cat", "cat mat cat"], 0, 0.8),
        ("dog", ["cat"], 0, 0),
        ("“cat”", ["cat"], 0, 0),  # only ASCII punctuation is removed
        ("U.S.", ["US"], 1, 1),
        ("well-known", ["well known"], 0, 0),
        ("the", ["a"], 1, 0),  # both are empty then; version 2.0 says 1, below
    ],
)
def test_scores_of_version_1(predicted, golds, exact, f1):
    scores = score([predicted], Gold.of([golds]))
    assert (scores.exact[0], scores.f1[0]) == (exact, pytest.approx(f1))


@pytest.mark.parametrize(
    ("predicted", "golds", "exact", "f1"),
    [("cat", [], 0, 0), ("the", [], 1, 1), ("the", ["a"], 1, 1), ("the", ["a", "cat"], 0, 0), ("a cat", ["cat"], 1, 1)],
)
def test_scores_of_version_2(predicted, golds, exact, f1):
    scores = score([predicted, "x"], Gold.of([golds, []]))
    assert (scores.exact[0], scores.f1[0]) == (exact, f1)


@given(st.text())
def test_texts_are_normalised_by_the_official_rules(text):
    assert normalized(text) == official_normal(text)
    assert normalized(normalized(text)) in (normalized(text), official_normal(official_normal(text)))


@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=1), st.booleans())
def test_scores_are_equal_to_the_official_scripts(cases, second):
    answers, golds = [each[0] for each in cases], [each[1] for each in cases]
    if second:
        answers, golds = [*answers, "x"], [*golds, []]
    scores = score(answers, Gold.of(golds))
    expected = [official(answer, gold, 2 if second else 1) for answer, gold in zip(answers, golds, strict=True)]
    np.testing.assert_allclose(np.stack([scores.exact, scores.f1], axis=1), expected, rtol=1e-12)


QUESTIONS = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(-3, 3)), min_size=1, max_size=12
)


def scores_of(cases):
    has = np.array([has for has, _, _ in cases])
    raw = np.array([value if has else 0.0 for has, value, _ in cases])
    return Scores((raw == 1).astype(float), raw, has, np.array([float(d) for _, _, d in cases]))


@given(QUESTIONS, st.integers(-4, 4))
def test_counts_of_questions_add_up_to_the_metrics(cases, threshold):
    scores = scores_of(cases)
    sums = scores.counts(threshold).sum(axis=0)
    final = {
        name: np.where(scores.null_differences > threshold, ~scores.has_answer, raw)
        for name, raw in (("exact_match", scores.exact), ("answer_f1", scores.f1))
    }
    for name, values in final.items():
        assert RATES[name](sums) == pytest.approx(values.mean())
        if scores.has_answer.any():
            among = f"has_answer_{name.removeprefix('answer_')}"
            assert RATES[among](sums) == pytest.approx(values[scores.has_answer].mean())
        if not scores.has_answer.all():
            assert RATES["no_answer_accuracy"](sums) == pytest.approx(values[~scores.has_answer].mean())


def test_a_metric_without_its_questions_is_not_a_number_and_a_resample_is_one_product():
    scores = score(["cat", "dog"], Gold.of([["cat"], ["cat"]]))
    weights = np.array([[2, 0], [1, 1], [0, 2]])  # how often each question is drawn
    np.testing.assert_array_equal(RATES["exact_match"](weights @ scores.counts()), [1, 0.5, 0])
    assert np.isnan(RATES["no_answer_accuracy"](weights @ scores.counts())).all()


@given(QUESTIONS, st.sampled_from(["exact_match", "answer_f1"]))
def test_no_threshold_is_better_than_the_best(cases, metric):
    scores = scores_of(cases)

    def at(threshold):
        return RATES[metric](scores.counts(threshold).sum(axis=0))

    best = at(best_threshold(scores, metric))
    everything = [-np.inf, *scores.null_differences, *(scores.null_differences + 0.5), np.inf]
    assert best == pytest.approx(max(map(at, everything)))


@given(QUESTIONS, st.randoms(use_true_random=False))
def test_the_best_threshold_is_the_official_one_where_differences_differ(cases, random):
    scores = scores_of(cases)
    different = random.sample(range(-50, 50), len(cases))
    scores = Scores(scores.exact, scores.f1, scores.has_answer, np.array(different, dtype=float))
    found = best_threshold(scores)
    value, threshold = official_threshold(scores.f1, different, scores.has_answer)
    assert RATES["answer_f1"](scores.counts(found).sum(axis=0)) == pytest.approx(value)
    if found >= min(different):  # else nothing is answered, for which the script says 0
        assert threshold < found < min((each for each in different if each > threshold), default=threshold + 2)


def test_a_threshold_needs_the_possibility_of_no_answer():
    with pytest.raises(ValueError, match="null differences"):
        best_threshold(score(["cat"], Gold.of([["cat"]])))
