"""Tagged sentences from the text of CoNLL files, from rows of tokens and tags, and from texts with spans.

The functions record what is wrong in `Remarks` and leave such sentences out. So `Remarks.refuse_faults` says the faults
of all files at once.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from hpo.tasks.token_classification.remarks import Kind, Remarks
from hpo.tasks.token_classification.schemes import SCHEMES, Entity, Scheme, violation_text, violations, written

CONLL_ENDINGS = (".conll", ".conll03", ".conllu", ".iob", ".bio", ".txt")
NEW_DOCUMENT = "-DOCSTART-"

_BREAK = re.compile(r"\r\n|\r|\n")
_UNSPOKEN = re.compile(r"\d+-\d+|\d+\.\d+")  # CoNLL-U's numbers of a group of words, and of a word that is not written

WIDTH = Kind(
    "lines with fewer or more columns than the other lines of their sentence",
    "Give every line of a sentence the same columns. Lines with # are comments only if the study says that it has such",
)
NO_TAG = Kind("lines without a word or a tag", "Write a word and its tag on each line, or name their columns")
NOT_LISTS = Kind(
    "rows whose tokens or tags are not a list of texts", 'Write e.g. {"tokens": ["Ann"], "tags": ["B-PER"]}'
)
NUMBERS = Kind(
    "rows with a number for a tag that has no name",
    "Write the tags as texts; only a data set that names its tags may number them",
)
LENGTHS = Kind("rows with more or fewer tags than tokens", "Give each token one tag")
NOT_SPANS = Kind(
    "spans that are not a start, an end and a label",
    'Write e.g. {"text": "Ann left", "spans": [{"start": 0, "end": 3, "label": "PER"}]}, all three keys for each span',
)
OUTSIDE = Kind(
    "spans that are empty or outside their text", "Count characters from 0; end is the first character after"
)
OVERLAP = Kind("spans that overlap another", "Keep one of them, as each word has one tag")
EMPTY_ROWS = "rows without a word, which are left out"
SPLIT_WORDS = "words that a span splits, as it starts or ends within them"


@dataclass(frozen=True)
class Sentence:
    """One row: words, and a tag for each.

    Attributes:
        words: The words.
        tags: Their tags.
        source: File or data set.
        row: Number of the row from 1, or line of the first word.
        group: What the sentence belongs to: sentences of one document must not be divided between splits.
        lines: The line of each word, of a CoNLL file.
        offsets: The start and the end of each word in its text, of a text with spans.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    source: str
    row: int
    group: str | None = None
    lines: tuple[int, ...] = ()
    offsets: tuple[tuple[int, int], ...] = ()

    @property
    def place(self) -> str:
        """Where the sentence is, for people."""
        return f"{self.source}, line {self.row}" if self.lines else _place((self.source, self.row))

    def place_of(self, word: int) -> str:
        """Return where a word is, for people."""
        return f"{self.source}, line {self.lines[word]}" if self.lines else f"{self.place}, word {word + 1}"


def _place(entry: tuple[str, int]) -> str:
    return f"row {entry[1]} of {entry[0]}"


def check_tags(sentences: Iterable[Sentence], scheme: Scheme, remarks: Remarks) -> None:
    """Record a fault for each tag that a scheme does not allow, given the tag before."""
    kind = Kind(f"tags that {scheme.name} does not allow", f"In {scheme.name}, {scheme.rule}. Or name another scheme")
    for sentence in sentences:
        for position in violations(sentence.tags, scheme):
            place = sentence.place_of(min(position, len(sentence.tags) - 1))
            remarks.fault(kind, place, violation_text(sentence.tags, position, scheme))


# ---------------------------------------------------------------- CoNLL


@dataclass(frozen=True)
class Columns:
    """The columns of a CoNLL file; 1 is the first one and -1 the last one.

    Attributes:
        word: Column of the word; 2 in CoNLL-U.
        tag: Column of the tag; 4 in CoNLL-U for the universal part of speech.
        comments: Whether lines before a sentence that begin with # are comments, as in CoNLL-U. Then its lines of
            several words (`1-2`) and of unwritten words (`1.1`) are left out too.
    """

    word: int = 1
    tag: int = -1
    comments: bool = False


Line = tuple[int, list[str]]  # number, fields


def read_conll(text: str, source: str, columns: Columns, remarks: Remarks) -> list[Sentence]:
    """Return the sentences of a CoNLL file: a word a line, an empty line after each sentence.

    The sentences of a document are a group. A document begins with a line `-DOCSTART-`, or in CoNLL-U `# newdoc`.

    Args:
        text: Content of the file. Fields are separated by tabs, or in a line without a tab by blanks.
        source: Its name.
        columns: Where the words and the tags are.
        remarks: Where faults are recorded.
    """
    found = []
    for document, lines in _blocks(text, columns):
        cells = _cells(lines, source, columns, remarks)
        if cells is not None:
            words, tags = zip(*cells, strict=True)
            group = f"{source}, document {document}" if document else None
            numbers = tuple(number for number, _ in lines)
            found.append(Sentence(words, tags, source, numbers[0], group, lines=numbers))
    return found


def _blocks(text: str, columns: Columns) -> Iterator[tuple[int, list[Line]]]:
    """Yield (number of the document or 0, the lines of a sentence)."""
    document, block = 0, list[Line]()
    for number, line in enumerate(_BREAK.split(text), 1):
        fields = _fields(line)
        if fields[0] == NEW_DOCUMENT or fields == [""]:
            if block:
                yield document, block
            block = []
            document += fields[0] == NEW_DOCUMENT
        elif columns.comments and not block and line.startswith("#"):
            document += line[1:].split()[:1] == ["newdoc"]
        elif not (columns.comments and columns.word != 1 and _UNSPOKEN.fullmatch(fields[0])):
            block.append((number, fields))
    if block:
        yield document, block


def _fields(line: str) -> list[str]:
    """Return the fields of a line. Other white space than blanks and tabs is text, such as a no-break space."""
    line = line.rstrip(" \t")
    return [field.strip(" ") for field in line.split("\t")] if "\t" in line else re.split(" +", line.lstrip(" "))


def _cells(lines: Sequence[Line], source: str, columns: Columns, remarks: Remarks) -> list[tuple[str, str]] | None:
    """Return the words and tags of a sentence, or None if a line of it has a fault, which is recorded."""
    widths = Counter(len(fields) for _, fields in lines)
    width = max(widths, key=lambda each: (widths[each], each))
    cells = []
    for number, fields in lines:
        word, tag = (column - 1 if column > 0 else column + len(fields) for column in (columns.word, columns.tag))
        place, has = f"{source}, line {number}", f"{len(fields)} column" + "s" * (len(fields) != 1)
        if len(fields) != width:
            remarks.fault(WIDTH, place, f"{has}, where its sentence has {width}: {' '.join(fields)[:60]!r}")
        elif word == tag or not all(0 <= column < len(fields) and fields[column] for column in (word, tag)):
            asked = f"the word is looked for in {_named(columns.word)}, the tag in {_named(columns.tag)}"
            remarks.fault(NO_TAG, place, f"{has}, {asked}: {' '.join(fields)[:60]!r}")
        else:
            cells.append((fields[word], fields[tag]))
    return cells if len(cells) == len(lines) else None


def _named(column: int) -> str:
    return f"column {column}" if column > 0 else "the last column" if column == -1 else f"column {-column} from the end"


# ---------------------------------------------------------------- tokens and tags


def read_tokens(
    tokens: Sequence[Any],
    tags: Sequence[Any],
    places: Sequence[tuple[str, int]],
    remarks: Remarks,
    names: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> list[Sentence]:
    """Return the sentences of n rows of tokens and tags, such as those of a JSON file or of a data set on the Hub.

    Args:
        tokens: The words of each row: a list of texts.
        tags: The tags of each row: a list of texts, or of numbers that stand for `names`.
        places: File and number of each row.
        remarks: Where faults are recorded, and rows without a word, which are left out.
        names: The tags that numbers stand for.
        groups: The group of each row.
    """
    found = []
    for i, (place, own_tokens, own_tags) in enumerate(zip(places, tokens, tags, strict=True)):
        words, given = _texts(own_tokens), _listed(own_tags)
        if words is None or given is None:
            remarks.fault(NOT_LISTS, _place(place), f"tokens {_shown(own_tokens)}, tags {_shown(own_tags)}")
        elif len(words) != len(given):
            remarks.fault(LENGTHS, _place(place), f"{len(words)} tokens, {len(given)} tags")
        elif not words:
            remarks.note(EMPTY_ROWS, _place(place))
        elif (named := _names(given, names or (), place, remarks)) is not None:
            found.append(Sentence(tuple(words), tuple(named), *place, group=groups[i] if groups is not None else None))
    return found


def _listed(value: Any) -> list[Any] | None:
    return list(value) if isinstance(value, list | tuple | np.ndarray) else None


def _texts(value: Any) -> list[str] | None:
    listed = _listed(value)
    return listed if listed is not None and all(isinstance(each, str) for each in listed) else None


def _names(tags: list[Any], names: Sequence[str], place: tuple[str, int], remarks: Remarks) -> list[str] | None:
    """Return tags as texts, or None if one is neither a text nor the number of a name, which is recorded."""
    numbered = [names[index] if (index := _whole(tag)) is not None and 0 <= index < len(names) else tag for tag in tags]
    wrong = next((i for i, tag in enumerate(numbered) if not isinstance(tag, str) or not tag), None)
    if wrong is None:
        return numbered
    is_number = isinstance(tags[wrong], int | float | np.number)
    detail = f"the tag of word {wrong + 1} is {_shown(tags[wrong])}"
    has_names = f"; the tags with a name are 0 to {len(names) - 1}" if is_number and names else ""
    remarks.fault(NUMBERS if is_number else NOT_LISTS, _place(place), detail + has_names)
    return None


def _whole(value: Any) -> int | None:
    """Return a whole number as an int; None for anything else."""
    return int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else None


def _shown(value: Any) -> str:
    text = repr(value.tolist() if isinstance(value, np.generic | np.ndarray) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# ---------------------------------------------------------------- texts with spans


def read_spans(
    texts: Sequence[Any],
    spans: Sequence[Any],
    places: Sequence[tuple[str, int]],
    remarks: Remarks,
    groups: Sequence[str] | None = None,
) -> list[Sentence]:
    """Return the sentences of n texts with spans of characters; their tags are written in IOB2.

    A word that a span starts or ends within is split there.

    Args:
        texts: The text of each row.
        spans: The spans of each row: `[{"start": 0, "end": 3, "label": "PER"}]`, in characters, without the end.
        places: File and number of each row.
        remarks: Where faults are recorded, and words that are split and rows without a word.
        groups: The group of each row.
    """
    found = []
    for i, (place, text, given) in enumerate(zip(places, texts, spans, strict=True)):
        marked = _marked(text, given, _place(place), remarks)
        if marked is None:
            continue
        whole, offsets = words_of(text), words_of(text, {edge for span in marked for edge in (span.start, span.end)})
        for _ in range(len(offsets) - len(whole)):
            remarks.note(SPLIT_WORDS, _place(place))
        if not offsets:
            remarks.note(EMPTY_ROWS, _place(place))
            continue
        starts = np.array([start for start, _ in offsets])
        among = [Entity(span.type, *np.searchsorted(starts, [span.start, span.end]).tolist()) for span in marked]
        tags = written(among, len(offsets), SCHEMES["IOB2"])
        words = tuple(text[start:end] for start, end in offsets)
        group = groups[i] if groups is not None else None
        found.append(Sentence(words, tuple(tags), *place, group=group, offsets=tuple(offsets)))
    return found


def _marked(text: Any, given: Any, place: str, remarks: Remarks) -> list[Entity] | None:
    """Return the spans of a text, from left to right, or None if there is a fault, which is recorded."""
    listed = _listed(given)
    if not isinstance(text, str) or listed is None:
        remarks.fault(NOT_SPANS, place, f"text {_shown(text)}, spans {_shown(given)}")
        return None
    spans = [_span(each) for each in listed]
    wrong = [
        (NOT_SPANS, _shown(each)) if span is None else (OUTSIDE, f"{_shown(each)} in a text of {len(text)} characters")
        for each, span in zip(listed, spans, strict=True)
        if span is None or not (0 <= span.start < span.end <= len(text) and text[span.start : span.end].strip())
    ]
    ordered = sorted((span for span in spans if span is not None), key=lambda span: (span.start, span.end))
    if not wrong:
        wrong = [(OVERLAP, _crossing(text, *pair)) for pair in _overlaps(ordered)]
    for kind, what in wrong:
        remarks.fault(kind, place, what)
    return None if wrong else ordered


def _span(given: Any) -> Entity | None:
    if not isinstance(given, Mapping):
        return None
    start, end, label = _whole(given.get("start")), _whole(given.get("end")), given.get("label")
    if start is None or end is None or not isinstance(label, str) or not label:
        return None
    return Entity(label, start, end)


def _overlaps(ordered: Sequence[Entity]) -> Iterator[tuple[Entity, Entity]]:
    """Yield each span that begins before an earlier one has ended, after the earlier one that ends last."""
    for last, span in zip(accumulate(ordered, _later_end), ordered[1:], strict=False):
        if span.start < last.end:
            yield last, span


def _later_end(one: Entity, other: Entity) -> Entity:
    return one if one.end >= other.end else other


def _crossing(text: str, *pair: Entity) -> str:
    one, other = (f"{span.type} {text[span.start : span.end][:30]!r} ({span.start} to {span.end})" for span in pair)
    return f"{other} overlaps {one}"


def words_of(text: str, cuts: Iterable[int] = ()) -> list[tuple[int, int]]:
    """Return the start and the end of each word of a text.

    Words are separated by white space. Each character of punctuation, and each other symbol, is a word of its own.

    Args:
        text: The text.
        cuts: Positions at which a word ends in any case.
    """
    cut, found, start = set(cuts), list[tuple[int, int]](), 0
    for position, character in enumerate(f"{text} "):
        alone = unicodedata.category(character)[0] in "PS"
        if alone or position in cut or character.isspace():
            found += [(start, position)] if start < position else []
            start = position
        if alone:
            found.append((position, position + 1))
        if alone or character.isspace():
            start = position + 1
    return found
