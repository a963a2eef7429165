import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.tasks.token_classification.schemes import (
    SCHEMES,
    Entity,
    converted,
    entities,
    guessed,
    is_tag,
    strict_entities,
    types_of,
    violation_text,
    violations,
    written,
)

TYPES = ("PER", "LOC", "A-B", "_")


@st.composite
def laid_out(draw):
    """A sentence's length and entities that do not overlap; some touch."""
    found, at = [], 0
    for _ in range(draw(st.integers(0, 5))):
        start = at + draw(st.integers(0, 2))
        at = start + draw(st.integers(1, 4))
        found.append(Entity(draw(st.sampled_from(TYPES)), start, at))
    return at + draw(st.integers(0, 2)), found


def any_tags(prefixes):
    tags = ["O", *(f"{prefix}-{name}" for prefix in prefixes if prefix != "O" for name in TYPES[:3])]
    return st.lists(st.sampled_from([*tags, *(prefix for prefix in prefixes if prefix != "O")]), max_size=9)


EXAMPLE = [Entity("PER", 0, 2), Entity("LOC", 2, 3), Entity("LOC", 3, 4)]


@pytest.mark.parametrize(
    ("name", "tags"),
    [
        ("IOB1", "I-PER I-PER I-LOC B-LOC O"),
        ("IOB2", "B-PER I-PER B-LOC B-LOC O"),
        ("BIOES", "B-PER E-PER S-LOC S-LOC O"),
        ("BILOU", "B-PER L-PER U-LOC U-LOC O"),
    ],
)
def test_the_example_of_the_docstring(name, tags):
    assert written(EXAMPLE, 5, SCHEMES[name]) == tags.split()
    assert entities(tags.split()) == EXAMPLE
    assert guessed([tags.split()]) is SCHEMES[name]


def test_io_makes_one_entity_of_two_that_touch():
    tags = written(EXAMPLE, 5, SCHEMES["IO"])
    assert tags == ["I-PER", "I-PER", "I-LOC", "I-LOC", "O"]
    assert entities(tags) == [Entity("PER", 0, 2), Entity("LOC", 2, 4)]


@given(laid_out(), st.sampled_from(sorted(SCHEMES)))
def test_what_is_written_is_allowed_and_read_back(laid, name):
    length, found = laid
    tags = written(reversed(found), length, SCHEMES[name])
    assert len(tags) == length
    assert list(violations(tags, SCHEMES[name])) == []
    read = entities(tags)
    assert read == strict_entities(tags, SCHEMES[name])
    if name != "IO":
        assert read == found
    assert types_of(tags) == tuple(sorted({entity.type for entity in found}))


@given(laid_out(), st.sampled_from(sorted(SCHEMES)), st.sampled_from(sorted(SCHEMES)))
def test_conversion_keeps_the_entities(laid, source, target):
    length, found = laid
    tags = written(found, length, SCHEMES[source])
    if "IO" in (source, target):
        found = entities(written(found, length, SCHEMES["IO"]))
    assert converted(tags, SCHEMES[target]) == written(found, length, SCHEMES[target])


@given(st.data(), st.sampled_from(sorted(SCHEMES)))
def test_tags_are_allowed_exactly_if_writing_their_entities_gives_them_back(data, name):
    tags = data.draw(any_tags(SCHEMES[name].prefixes))
    assert (list(violations(tags, SCHEMES[name])) == []) == (converted(tags, SCHEMES[name]) == tags)


@pytest.mark.parametrize(
    ("name", "tags", "said"),
    [
        ("IOB2", "O I-PER", ["'I-PER' after 'O'"]),
        ("IOB2", "I-PER I-PER", ["'I-PER' at the start of the sentence"]),
        ("IOB2", "B-PER I-LOC O I-LOC", ["'I-LOC' after 'B-PER'", "'I-LOC' after 'O'"]),
        ("IOB1", "O B-PER", ["'B-PER' after 'O'"]),
        ("IOB1", "I-LOC B-PER", ["'B-PER' after 'I-LOC'"]),
        ("IOB1", "I-LOC I-PER B-PER", []),
        ("BIOES", "B-PER O", ["'O' after 'B-PER'"]),
        ("BIOES", "B-PER I-PER", ["the end of the sentence after 'I-PER'"]),
        ("BIOES", "S-PER E-PER", ["'E-PER' after 'S-PER'"]),
        ("BILOU", "B-PER I-PER L-PER U-PER", []),
        ("IO", "I-PER B-PER I-PER", ["'B-PER' is no tag of IO, whose tags are O and I-TYPE"]),
        ("IOB2", "B-PER X-PER I-PER", ["'X-PER' is no tag of IOB2, whose tags are O and B-TYPE, I-TYPE"]),
        ("IOB2", "", []),
    ],
)
def test_what_a_scheme_does_not_allow(name, tags, said):
    tags, scheme = tags.split(), SCHEMES[name]
    assert [violation_text(tags, position, scheme) for position in violations(tags, scheme)] == said


@pytest.mark.parametrize(
    ("sentences", "name"),
    [
        (["I-PER I-PER O"], "IO"),
        (["B-PER O B-LOC"], "IOB2"),
        (["I-PER O", "I-PER B-PER"], "IOB1"),
        (["B-PER I-PER O", "O O I-LOC", "B-LOC I-LOC"], "IOB2"),  # one mistake
        (["S-PER O"], "BIOES"),
        (["B-PER E-PER", "B-PER I-PER E-PER"], "BIOES"),
        (["U-PER O"], "BILOU"),
        (["B I I O"], "IOB2"),
        (["DET NOUN", "O"], None),
        (["NN-HL B-NP"], None),
        (["O O"], None),
        (["B-X E-X L-X"], None),
        ([], None),
    ],
)
def test_the_scheme_is_guessed(sentences, name):
    assert guessed([tags.split() for tags in sentences]) is (None if name is None else SCHEMES[name])


@given(st.lists(laid_out(), min_size=1), st.sampled_from(sorted(SCHEMES)))
def test_a_guess_reads_the_entities_that_were_written(sentences, name):
    tags = [written(found, length, SCHEMES[name]) for length, found in sentences]
    scheme = guessed(tags)
    if scheme is None:
        assert {tag for each in tags for tag in each} <= {"O"}
    else:
        assert [strict_entities(each, scheme) for each in tags] == [entities(each) for each in tags]


def test_a_text_that_is_no_tag_has_no_entities():
    assert not is_tag("NOUN")
    assert not is_tag("B-")
    with pytest.raises(ValueError, match="'NOUN' is no tag of a scheme"):
        entities(["O", "NOUN"])
