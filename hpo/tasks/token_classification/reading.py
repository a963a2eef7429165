"""Tagged sentences from the text of CoNLL files, from rows of tokens and tags, and from texts with spans.

The functions record what is wrong in `Remarks` and leave such sentences out. So `Remarks.refuse_faults` says the faults
of all files at once.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from hpo.tasks.remarks import Kind, Remarks
from hpo.tasks.token_classification.schemes import SCHEMES, Entity, Scheme, violation_text, violations, written

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
PREDICATE = Kind(
    "rows whose predicate is not the number of a word",
    "Count the words from 0; of a sentence with two predicates write two rows",
)
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
        predicate: Number of the word whose roles the tags are, from 0; None where the tags are of no predicate.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    source: str
    row: int
    group: str | None = None
    lines: tuple[int, ...] = ()
    offsets: tuple[tuple[int, int], ...] = ()
    predicate: int | None = None

    @property
    def model_words(self) -> list[str]:
        """The words as the model reads them: with `*` around the predicate, which has to be told from other verbs."""
        words = list(self.words)
        if self.predicate is not None:
            words[self.predicate] = f"* {words[self.predicate]} *"
        return words

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
    remedy = f"In {scheme.name}, {scheme.rule}. If the tags are of another scheme, set data: {{scheme: ...}}"
    kind = Kind(f"tags that {scheme.name} does not allow", remedy)
    for sentence in sentences:
        for position in violations(sentence.tags, scheme):
            place = sentence.place_of(min(position, len(sentence.tags) - 1))
            remarks.fault(kind, place, violation_text(sentence.tags, position, scheme))


# ---------------------------------------------------------------- tokens and tags


def read_tokens(
    tokens: Sequence[Any],
    tags: Sequence[Any],
    places: Sequence[tuple[str, int]],
    remarks: Remarks,
    groups: Sequence[str] | None = None,
    predicates: Sequence[Any] | None = None,
) -> list[Sentence]:
    """Return the sentences of n rows of tokens and tags, such as those of a JSON file or of a data set on the Hub.

    Args:
        tokens: The words of each row: a list of texts.
        tags: The tags of each row: a list of texts.
        places: File and number of each row.
        remarks: Where faults are recorded, and rows without a word, which are left out.
        groups: The group of each row.
        predicates: The number of a word of each row, from 0.
    """
    found = []
    for i, (place, own_tokens, own_tags) in enumerate(zip(places, tokens, tags, strict=True)):
        words, given = texts_of(own_tokens), _listed(own_tags)
        if words is None or given is None:
            remarks.fault(NOT_LISTS, _place(place), f"tokens {_shown(own_tokens)}, tags {_shown(own_tags)}")
        elif len(words) != len(given):
            remarks.fault(LENGTHS, _place(place), f"{len(words)} tokens, {len(given)} tags")
        elif not words:
            remarks.note(EMPTY_ROWS, _place(place))
        elif predicates is not None and not is_number_below(len(words), predicates[i]):
            remarks.fault(PREDICATE, _place(place), f"{_shown(predicates[i])} in a sentence of {len(words)} words")
        elif _are_tags(given, place, remarks):
            group = groups[i] if groups is not None else None
            predicate = None if predicates is None else whole_number(predicates[i])
            found.append(Sentence(tuple(words), tuple(given), *place, group=group, predicate=predicate))
    return found


def is_number_below(count: int, value: Any) -> bool:
    """Return whether a value is the number, from 0, of one of so many things."""
    whole = whole_number(value)
    return whole is not None and 0 <= whole < count


def _listed(value: Any) -> list[Any] | None:
    return list(value) if isinstance(value, list | tuple | np.ndarray) else None


def texts_of(value: Any) -> list[str] | None:
    """Return a list of texts; None for anything else."""
    listed = _listed(value)
    return listed if listed is not None and all(isinstance(each, str) for each in listed) else None


def _are_tags(tags: list[Any], place: tuple[str, int], remarks: Remarks) -> bool:
    """Return whether tags are texts; the first that is none is recorded."""
    wrong = next((i for i, tag in enumerate(tags) if not isinstance(tag, str) or not tag), None)
    if wrong is None:
        return True
    kind = NUMBERS if isinstance(tags[wrong], int | float | np.number) else NOT_LISTS
    remarks.fault(kind, _place(place), f"the tag of word {wrong + 1} is {_shown(tags[wrong])}")
    return False


def whole_number(value: Any) -> int | None:
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
    start, end, label = whole_number(given.get("start")), whole_number(given.get("end")), given.get("label")
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
