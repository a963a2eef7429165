import warnings

import numpy as np
import pytest
import seqeval.metrics
import seqeval.scheme
from hypothesis import given
from hypothesis import strategies as st

from hpo.tasks.token_classification.schemes import SCHEMES, converted, types_of
from hpo.tasks.token_classification.scores import (
    ENTITY_SCORES,
    accuracy,
    collapsed,
    entity_counts,
    f1,
    precision,
    recall,
    token_counts,
)

STRICT = {
    "IOB1": seqeval.scheme.IOB1,
    "IOB2": seqeval.scheme.IOB2,
    "BIOES": seqeval.scheme.IOBES,
    "BILOU": seqeval.scheme.BILOU,
}
TYPES = ("PER", "LOC", "A-B")


@st.composite
def tagged(draw, name):
    """Gold and predicted tags of some sentences: any sequence of the scheme's tags, or one that it allows."""
    scheme, valid = SCHEMES[name], draw(st.booleans())
    tags = ["O", *(f"{prefix}-{kind}" for prefix in scheme.prefixes if prefix != "O" for kind in TYPES)]
    lengths = draw(st.lists(st.integers(1, 8), min_size=1, max_size=4))
    drawn = [[draw(st.lists(st.sampled_from(tags), min_size=n, max_size=n)) for n in lengths] for _ in range(2)]
    gold, predicted = [[converted(each, scheme) for each in side] for side in drawn] if valid else drawn
    if draw(st.booleans()):  # mostly right, so that entities are found
        predicted = [own if draw(st.booleans()) else given for own, given in zip(gold, predicted, strict=True)]
    return gold, predicted


def ours(gold, predicted, scheme=None):
    types = types_of(tag for side in (gold, predicted) for tags in side for tag in tags)
    return types, entity_counts(gold, predicted, types, scheme).sum(axis=0)


def assert_equal_to_seqeval(gold, predicted, counts, **mode):
    for name, score in ENTITY_SCORES.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = getattr(seqeval.metrics, f"{name}_score")
            whole = theirs(gold, predicted, **mode)
            each = theirs(gold, predicted, average=None, **mode)
        assert score(counts.sum(axis=0)) == pytest.approx(whole, abs=1e-12)
        seen = counts[:, 1:].sum(axis=1) > 0  # seqeval leaves out types without an entity
        np.testing.assert_allclose(score(counts)[seen], each, atol=1e-12)


@pytest.mark.parametrize("name", sorted(SCHEMES.keys() - {"BILOU"}))
@given(data=st.data())
def test_the_default_mode_is_seqevals(name, data):
    gold, predicted = data.draw(tagged(name))
    assert_equal_to_seqeval(gold, predicted, ours(gold, predicted)[1])


@given(tagged("BILOU"))
def test_in_the_default_mode_bilou_counts_as_bioes(sides):
    spelled = [[[{"L": "E", "U": "S"}.get(t[0], t[0]) + t[1:] for t in tags] for tags in side] for side in sides]
    assert_equal_to_seqeval(*spelled, ours(*sides)[1])


@pytest.mark.parametrize("name", sorted(STRICT))
@given(data=st.data())
def test_the_strict_mode_is_seqevals(name, data):
    gold, predicted = data.draw(tagged(name))
    counts = ours(gold, predicted, SCHEMES[name])[1]
    assert_equal_to_seqeval(gold, predicted, counts, mode="strict", scheme=STRICT[name])


@pytest.mark.parametrize(
    ("gold", "predicted", "default", "strict"),
    [
        ("B-PER I-PER O", "B-PER I-PER O", [1, 1, 1], [1, 1, 1]),
        ("B-PER I-PER O", "I-PER I-PER O", [1, 1, 1], [0, 0, 1]),  # no B-
        ("B-PER I-PER O", "B-PER O O", [0, 1, 1], [0, 1, 1]),  # an end that is wrong
        ("B-PER I-PER O", "B-PER I-LOC O", [0, 2, 1], [0, 1, 1]),  # the type changes within
        ("B-PER B-PER", "B-PER I-PER", [0, 1, 2], [0, 1, 2]),  # two that touch
        ("B-PER O", "O O", [0, 0, 1], [0, 0, 1]),
        ("O O", "O B-PER", [0, 1, 0], [0, 1, 0]),
        ("O O", "O O", [0, 0, 0], [0, 0, 0]),
    ],
)
def test_counts_of_a_sentence(gold, predicted, default, strict):
    gold, predicted = [gold.split()], [predicted.split()]
    assert ours(gold, predicted)[1].sum(axis=0).tolist() == default
    assert ours(gold, predicted, SCHEMES["IOB2"])[1].sum(axis=0).tolist() == strict


def test_scores_of_counts():
    counts = np.array([[2, 4, 5], [0, 0, 3], [0, 2, 0], [0, 0, 0]])
    assert precision(counts).tolist() == [0.5, 0, 0, 0]
    assert recall(counts).tolist() == [0.4, 0, 0, 0]
    assert f1(counts) == pytest.approx([4 / 9, 0, 0, 0])
    assert f1(counts.sum(axis=0)) == pytest.approx(4 / 14)


@given(tagged("IOB2"), st.data())
def test_a_sum_of_counts_scores_a_resample_of_the_sentences(sides, data):
    gold, predicted = sides
    rows = data.draw(st.lists(st.integers(0, len(gold) - 1), min_size=1, max_size=6))
    again = [[side[row] for row in rows] for side in sides]
    weights = np.bincount(rows, minlength=len(gold))
    counts = entity_counts(gold, predicted, TYPES)
    np.testing.assert_array_equal(weights @ counts.sum(axis=1), entity_counts(*again, TYPES).sum(axis=(0, 1)))
    words = token_counts(gold, predicted)
    assert accuracy(words[rows].sum(axis=0)) == pytest.approx(seqeval.metrics.accuracy_score(*again))


def test_accuracy_counts_words_of_plain_tags_too():
    counts = token_counts([["DET", "NOUN"], [], ["VERB"]], [["DET", "VERB"], [], ["VERB"]])
    assert counts.tolist() == [[1, 2], [0, 0], [1, 1]]
    assert accuracy(counts.sum(axis=0)) == pytest.approx(2 / 3)


@pytest.mark.parametrize("count", [token_counts, lambda *sides: entity_counts(*sides, ("PER",))])
def test_tags_must_be_of_the_same_words(count):
    with pytest.raises(ValueError, match="sentence 1 has 2 tags, and 1 predicted ones"):
        count([["O"], ["O", "O"]], [["O"], ["O"]])
    with pytest.raises(ValueError, match="shorter"):
        count([["O"], ["O"]], [["O"]])


@pytest.mark.parametrize(
    ("gold", "predicted", "tag"),
    [
        ([["B-X", "O"]], [["O", "O"]], "O"),
        ([["B-X"], ["B-X"]], [["O"], ["O"]], "O"),
        ([["DET", "NOUN"]], [["NOUN", "NOUN"]], "NOUN"),
        ([["O", "O"]], [["O", "O"]], None),
        ([["B-X", "O"]], [["O", "B-X"]], None),
        ([], [], None),
    ],
)
def test_a_collapse_is_named(gold, predicted, tag):
    assert collapsed(gold, predicted) == tag
