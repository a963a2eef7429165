"""Tagged sentences from the text of CoNLL files: a word a line, with columns, and an empty line after each sentence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hpo.tasks.remarks import Kind, Remarks
from hpo.tasks.token_classification.reading import Sentence

CONLL_ENDINGS = (".conll", ".conll03", ".conllu", ".iob", ".bio", ".txt")
NEW_DOCUMENT = "-DOCSTART-"

_BREAK = re.compile(r"\r\n|\r|\n")
_UNSPOKEN = re.compile(r"\d+-\d+|\d+\.\d+")  # CoNLL-U's numbers of a group of words, and of a word that is not written

WIDTH = Kind(
    "lines with fewer or more columns than the other lines of their sentence",
    "Give every line of a sentence the same columns. Lines with # are comments only with data: {comments: true}",
)
NO_TAG = Kind(
    "lines without a word or a tag",
    "Write a word and its tag on each line, or set data: {word_column: 1, tag_column: -1} to where they are",
)
PREDICATES = Kind(
    "sentences of which not one word is marked as the predicate",
    "Mark one word in that column, and write -, _, 0 or O for the others; write a sentence of two predicates twice, "
    "each time with the roles of one",
)
UNMARKED = ("", "-", "_", "0", "O")
"""What stands beside words that are not the predicate: in CoNLL-2005 and 2012 -, in CoNLL-2009 _."""


@dataclass(frozen=True)
class Columns:
    """The columns of a CoNLL file; 1 is the first one and -1 the last one.

    Attributes:
        word: Column of the word; 2 in CoNLL-U.
        tag: Column of the tag; 4 in CoNLL-U for the universal part of speech.
        comments: Whether lines before a sentence that begin with # are comments, as in CoNLL-U. Then its lines of
            several words (`1-2`) and of unwritten words (`1.1`) are left out too.
        predicate: Column in which the predicate is marked, if there is one; see `UNMARKED`.
    """

    word: int = 1
    tag: int = -1
    comments: bool = False
    predicate: int | None = None


Line = tuple[int, list[str]]  # number, fields


def read_words(text: str, source: str, columns: Columns, remarks: Remarks) -> list[tuple[tuple[str, ...], int | None]]:
    """Return the words of each sentence of a CoNLL file, which need not have tags, and the number of its predicate.

    A word is "" where a line has none. The arguments are as of `read_conll`.
    """
    found = []
    for _, lines in _blocks(text, columns):
        words = tuple(_cell(fields, columns.word) for _, fields in lines)
        found.append((words, _predicate(lines, source, columns, remarks)))
    return found


def _cell(fields: Sequence[str], column: int) -> str:
    place = column - 1 if column > 0 else column
    return fields[place] if -len(fields) <= place < len(fields) else ""


def read_conll(text: str, source: str, columns: Columns, remarks: Remarks) -> list[Sentence]:
    """Return the sentences of a CoNLL file: a word a line, an empty line after each sentence.

    The sentences of a document are a group. A document begins with a line `-DOCSTART-`, or in CoNLL-U `# newdoc`.

    Args:
        text: Content of the file. Fields are separated by tabs, or in a line without a tab by blanks.
        source: Its name.
        columns: Where the words, the tags and the marks of predicates are.
        remarks: Where faults are recorded.
    """
    found = []
    for document, lines in _blocks(text, columns):
        cells = _cells(lines, source, columns, remarks)
        if cells is not None:
            words, tags = zip(*cells, strict=True)
            predicate = _predicate(lines, source, columns, remarks)
            group = f"{source}, document {document}" if document else None
            numbers = tuple(number for number, _ in lines)
            found.append(Sentence(words, tags, source, numbers[0], group, lines=numbers, predicate=predicate))
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


def _predicate(lines: Sequence[Line], source: str, columns: Columns, remarks: Remarks) -> int | None:
    """Return the number of the word that is marked as the predicate; None if predicates are not marked.

    None too if not one word is marked, which is recorded as a fault.
    """
    if columns.predicate is None:
        return None
    marked = [i for i, (_, fields) in enumerate(lines) if _cell(fields, columns.predicate) not in UNMARKED]
    if len(marked) == 1:
        return marked[0]
    shown = [f"{_cell(lines[i][1], columns.word)!r} in line {lines[i][0]}" for i in marked[:3]]
    more = f" and {len(marked) - 3} more" if len(marked) > 3 else ""
    said = f"{len(marked)} words, {', '.join(shown)}{more}, are marked" if marked else "no word is marked"
    remarks.fault(PREDICATES, f"{source}, line {lines[0][0]}", f"{said} in {_named(columns.predicate)}")
    return None


def _named(column: int) -> str:
    return f"column {column}" if column > 0 else "the last column" if column == -1 else f"column {-column} from the end"
