import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.core.errors import DataError
from hpo.tasks.remarks import Remarks
from hpo.tasks.token_classification.conll import Columns, read_conll, read_words
from hpo.tasks.token_classification.reading import Sentence, check_tags, read_spans, read_tokens, words_of
from hpo.tasks.token_classification.schemes import SCHEMES, entities

CONLL_2003 = """-DOCSTART- -X- O O

EU NNP I-NP I-ORG
rejects VBZ I-VP O

# VBD I-VP O
Peter NNP I-NP I-PER

-DOCSTART- -X- O O

BRUSSELS NNP I-NP I-LOC
"""
CONLL_U = """# newdoc id = a
# sent_id = 1
1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tvamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
2.1\tx\tx\tNOUN\t_\t_\t_\t_\t_\t_
3\t10 000\t10 000\tNUM\t_\t_\t1\tobl\t_\t_

# sent_id = 2
1\t#\t#\tSYM\t_\t_\t0\troot\t_\t_
"""


def conll(text, columns=None, said=None):
    """The sentences of a text, and what is said of its faults."""
    remarks = Remarks()
    found = read_conll(text, "a.conll", columns or Columns(), remarks)
    if said is None:
        assert not remarks.faults
    else:
        assert refused(remarks) == said
    return found


def refused(remarks):
    with pytest.raises(DataError) as caught:
        remarks.refuse_faults()
    return str(caught.value).split("\n")


def rows(count):
    return [("a.jsonl", number) for number in range(1, count + 1)]


def test_a_conll_file_is_read_with_documents_as_groups_and_lines():
    first, second, third = conll(CONLL_2003)
    assert first == Sentence(("EU", "rejects"), ("I-ORG", "O"), "a.conll", 3, "a.conll, document 1", (3, 4))
    assert (second.words, second.group) == (("#", "Peter"), first.group)
    assert (third.words, third.group) == (("BRUSSELS",), "a.conll, document 2")
    assert (first.place, first.place_of(1)) == ("a.conll, line 3", "a.conll, line 4")


@pytest.mark.parametrize(
    ("columns", "tags"),
    [
        (Columns(tag=2), ("NNP", "VBZ")),
        (Columns(tag=-2), ("I-NP", "I-VP")),
        (Columns(word=4, tag=1), ("EU", "rejects")),
    ],
)
def test_any_column_may_have_the_tags(columns, tags):
    assert conll(CONLL_2003, columns)[0].tags == tags


def test_conll_u_has_comments_and_lines_that_are_no_words():
    one, other = conll(CONLL_U, Columns(word=2, tag=4, comments=True))
    assert list(zip(one.words, one.tags, strict=True)) == [("vamos", "VERB"), ("nos", "PRON"), ("10 000", "NUM")]
    assert one.lines == (4, 5, 7)
    assert one.group == other.group == "a.conll, document 1"
    assert other.words == ("#",)


@pytest.mark.parametrize(
    "text", ["a O\nb O\n\nc O", "a\tO\r\nb\tO\r\n\r\nc\tO\r\n", "\n\na  O \nb O\t\n \t\n\nc O\n\n\n"]
)
def test_blanks_tabs_and_line_ends(text):
    assert [(each.words, each.tags, each.group) for each in conll(text)] == [
        (("a", "b"), ("O", "O"), None),
        (("c",), ("O",), None),
    ]


def test_a_word_with_a_hash_is_no_comment_within_a_sentence():
    text = "# a comment\na O\n#b O\n\n#c O\n"
    assert [each.words for each in conll(text, Columns(comments=True))] == [("a", "#b")]
    assert [each.words for each in conll(text[12:])] == [("a", "#b"), ("#c",)]


def test_white_space_that_is_no_separator_belongs_to_the_word():
    assert conll("a\u00a0b O\n\u2028 O\n\u3000 O")[0].words == ("a\u00a0b", "\u2028", "\u3000")


@given(
    st.lists(
        st.lists(st.tuples(st.text("ab#\u00e9\u00a0", min_size=1), st.sampled_from(["O", "B-X"])), min_size=1),
        max_size=4,
    ),
    st.sampled_from([" ", "\t", " \t"]),
)
def test_what_is_written_is_read(sentences, separator):
    text = "".join("".join(f"{word}{separator}{tag}\n" for word, tag in sentence) + "\n" for sentence in sentences)
    assert [list(zip(each.words, each.tags, strict=True)) for each in conll(text)] == sentences


def test_lines_with_wrong_columns_are_counted_and_the_others_are_read():
    text = "a x O\nb O\nc x O\n\nd\n\ne x O\n\nf x O\n\n" + "g\n\n" * 4
    found = conll(
        text,
        said=[
            "the data have 6 faults",
            "  lines with fewer or more columns than the other lines of their sentence: 1",
            "    a.conll, line 2: 2 columns, where its sentence has 3: 'b O'",
            "    Give every line of a sentence the same columns. Lines with # are comments only with "
            "data: {comments: true}",
            "  lines without a word or a tag: 5",
            *(
                f"    a.conll, line {number}: 1 column, the word is looked for in column 1, the tag in the last "
                f"column: '{word}'"
                for number, word in [(5, "d"), (11, "g"), (13, "g")]
            ),
            "    and 2 more",
            "    Write a word and its tag on each line, or set data: {word_column: 1, tag_column: -1} to where they "
            "are",
        ],
    )
    assert [each.words for each in found] == [("e",), ("f",)]


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("a O", Columns(tag=4)),
        ("\tO", Columns()),
        ("a\t\tO", Columns(tag=2)),
        ("a O", Columns(tag=-3)),
        ("a O", Columns(2)),
    ],
)
def test_a_line_without_its_word_or_tag_is_a_fault(text, columns):
    remarks = Remarks()
    assert read_conll(text, "a.conll", columns, remarks) == []
    assert "a.conll, line 1: " in refused(remarks)[2]


def test_tags_that_the_scheme_does_not_allow_are_said_with_their_line():
    remarks = Remarks()
    check_tags(conll("a O\nb E-X\n\n\nc B-X\nd E-X\ne B-X"), SCHEMES["BIOES"], remarks)
    assert refused(remarks) == [
        "the data have 2 faults",
        "  tags that BIOES does not allow: 2",
        "    a.conll, line 2: 'E-X' after 'O'",
        "    a.conll, line 7: the end of the sentence after 'B-X'",
        "    In BIOES, an entity is S- alone, or starts with B-, goes on with I-, and ends with E-, all of one type. "
        "If the tags are of another scheme, set data: {scheme: ...}",
    ]


# ---------------------------------------------------------------- tokens and tags


def test_tokens_and_tags_are_read_as_texts():
    remarks = Remarks()
    tokens = [["Ann", "left"], np.array(["Oslo"], dtype=object), [], ("a",)]
    tags = [["B-PER", "O"], np.array(["B-LOC"], dtype=object), [], ("O",)]
    found = read_tokens(tokens, tags, rows(4), remarks, groups=list("ppqq"))
    assert [(each.words, each.tags, each.group) for each in found] == [
        (("Ann", "left"), ("B-PER", "O"), "p"),
        (("Oslo",), ("B-LOC",), "p"),
        (("a",), ("O",), "q"),
    ]
    assert (found[1].place, found[0].place_of(1)) == ("row 2 of a.jsonl", "row 1 of a.jsonl, word 2")
    assert remarks.notes() == ["rows without a word, which are left out: 1, first row 3 of a.jsonl"]
    remarks.refuse_faults()


@pytest.mark.parametrize(
    ("tokens", "tags", "said"),
    [
        (["a", "b"], ["O"], "2 tokens, 1 tags"),
        ("a b", ["O", "O"], "tokens 'a b', tags ['O', 'O']"),
        (["a"], None, "tokens ['a'], tags None"),
        (["a", None], ["O", "O"], "tokens ['a', None], tags ['O', 'O']"),
        (["a"], [float("nan")], "the tag of word 1 is nan"),
        (["a"], [None], "the tag of word 1 is None"),
        (["a"], [""], "the tag of word 1 is ''"),
        (["a", "b"], ["O", 1], "the tag of word 2 is 1"),
        (["a"], [np.int64(2)], "the tag of word 1 is 2"),
        (["a"], [True], "the tag of word 1 is True"),
    ],
)
def test_tokens_and_tags_that_do_not_fit_are_said_with_their_row(tokens, tags, said):
    remarks = Remarks()
    found = read_tokens([["x"], tokens], [["O"], tags], rows(2), remarks)
    assert [each.words for each in found] == [("x",)]
    assert refused(remarks)[2] == f"    row 2 of a.jsonl: {said}"


# ---------------------------------------------------------------- texts with spans


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Ann's 3-day  trip.", ["Ann", "'", "s", "3", "-", "day", "trip", "."]),
        ("", []),
        (" \n\t", []),
        ("\u0939\u093f\u0928\u094d\u0926\u0940 \u20ac5", ["\u0939\u093f\u0928\u094d\u0926\u0940", "\u20ac", "5"]),
        ("a\u00a0b...", ["a", "b", ".", ".", "."]),
    ],
)
def test_words_end_at_white_space_and_punctuation(text, words):
    assert [text[start:end] for start, end in words_of(text)] == words


@given(st.text("ab .,\u00e9\u0301\u4e2d"), st.sets(st.integers(0, 12)))
def test_words_are_all_of_a_text_but_its_white_space(text, cuts):
    found = words_of(text, cuts)
    assert "".join(text[start:end] for start, end in found) == "".join(text.split())
    assert all(start < end and not any(start < cut < end for cut in cuts) for start, end in found)
    assert all(one[1] <= other[0] for one, other in pairwise(found))


def test_spans_become_tags_of_words():
    remarks = Remarks()
    text = "Ann Lee visits Neu-Ulm, unhappily"
    spans = [
        {"start": 26, "end": 31, "label": "MOOD"},  # within a word
        {"start": 0, "end": 8, "label": "PER"},  # with a blank
        {"start": 15, "end": 22, "label": "LOC"},
    ]
    (found,) = read_spans([text], json.loads(json.dumps([spans])), rows(1), remarks)
    assert list(zip(found.words, found.tags, strict=True)) == [
        ("Ann", "B-PER"),
        ("Lee", "I-PER"),
        ("visits", "O"),
        ("Neu", "B-LOC"),
        ("-", "I-LOC"),
        ("Ulm", "I-LOC"),
        (",", "O"),
        ("un", "O"),
        ("happi", "B-MOOD"),
        ("ly", "O"),
    ]
    assert [text[start:end] for start, end in found.offsets] == list(found.words)
    assert remarks.notes() == ["words that a span splits, as it starts or ends within them: 2, first row 1 of a.jsonl"]


@given(st.text("ab .,", min_size=1, max_size=20), st.data())
def test_spans_are_the_entities_of_the_tags(text, data):
    edges = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pairs = [pair for pair in pairwise(edges) if text[slice(*pair)].strip() and data.draw(st.booleans())]
    spans = [{"start": start, "end": end, "label": "XY"[start % 2]} for start, end in pairs]
    remarks = Remarks()
    found = read_spans([text], [data.draw(st.permutations(spans))], rows(1), remarks)
    remarks.refuse_faults()
    if not text.strip():
        assert found == []
        return
    (sentence,) = found
    read = [
        (text[sentence.offsets[entity.start][0] : sentence.offsets[entity.end - 1][1]], entity.type)
        for entity in entities(sentence.tags)
    ]
    assert read == [(text[start:end].strip(), "XY"[start % 2]) for start, end in pairs]


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ([(0, 9)], "{'start': 0, 'end': 9, 'label': 'X'} in a text of 8 characters"),
        ([(-1, 3)], "{'start': -1, 'end': 3, 'label': 'X'} in a text of 8 characters"),
        ([(3, 3)], "{'start': 3, 'end': 3, 'label': 'X'} in a text of 8 characters"),
        ([(3, 4)], "{'start': 3, 'end': 4, 'label': 'X'} in a text of 8 characters"),  # a blank
        ([(0, 3), (2, 8)], "X 'n left' (2 to 8) overlaps X 'Ann' (0 to 3)"),
        ([(4, 8), (0, 8)], "X 'left' (4 to 8) overlaps X 'Ann left' (0 to 8)"),
        ([(0, 3), (0, 3)], "X 'Ann' (0 to 3) overlaps X 'Ann' (0 to 3)"),
        ([("0", 3)], "{'start': '0', 'end': 3, 'label': 'X'}"),
        ([[0, 3, "X"]], "[0, 3, 'X']"),
        ("PER", "text 'Ann left', spans 'PER'"),
    ],
)
def test_spans_that_do_not_fit_are_said_with_their_row(spans, said):
    if spans != "PER":
        spans = [
            dict(zip(("start", "end", "label"), (*s, "X"), strict=True)) if isinstance(s, tuple) else s for s in spans
        ]
    remarks = Remarks()
    assert read_spans(["Ann left"], [spans], rows(1), remarks) == []
    assert refused(remarks)[2] == f"    row 1 of a.jsonl: {said}"


def test_a_text_without_words_is_left_out():
    remarks = Remarks()
    assert read_spans([" ", ""], [[], []], rows(2), remarks) == []
    assert remarks.notes() == ["rows without a word, which are left out: 2, first row 1 of a.jsonl"]


# ---------------------------------------------------------------- predicates

ROLES = """Ann - B-A0
gave give B-V
Bob - B-A2
the - B-A1
book - I-A1

Ann _ B-A0
saw Y B-V
it 0 B-A1
"""


def test_the_predicate_of_a_sentence_is_marked_in_a_column():
    columns = Columns(tag=3, predicate=2)
    first, second = conll(ROLES, columns)
    assert (first.predicate, first.model_words) == (1, ["Ann", "* gave *", "Bob", "the", "book"])
    assert first.tags == ("B-A0", "B-V", "B-A2", "B-A1", "I-A1")
    assert (second.predicate, second.tags) == (1, ("B-A0", "B-V", "B-A1"))
    assert [sentence.predicate for sentence in conll(ROLES, Columns(tag=3))] == [None, None]
    remarks = Remarks()
    assert read_words(ROLES, "a.conll", columns, remarks) == [(each.words, 1) for each in (first, second)]
    assert not remarks.faults


@pytest.mark.parametrize("read", [read_conll, read_words])
def test_sentences_without_one_predicate_are_counted_with_their_lines(read):
    text = ROLES.replace("give", "-") + "\n" + ROLES.replace("Bob -", "Bob x")
    remarks = Remarks()
    read(text, "a.conll", Columns(tag=3, predicate=2), remarks)
    said = refused(remarks)
    assert said[1] == "  sentences of which not one word is marked as the predicate: 2"
    assert said[2] == "    a.conll, line 1: no word is marked in column 2"
    assert said[3] == "    a.conll, line 11: 2 words, 'gave' in line 12, 'Bob' in line 13, are marked in column 2"
