"""The examples of token classification: sentences with a tag for each word, from the tables of all splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo.core.errors import DataError
from hpo.tasks.dataset import Split
from hpo.tasks.remarks import Remarks
from hpo.tasks.token_classification.conll import read_conll, read_words
from hpo.tasks.token_classification.keys import PLAIN, TagKeys, is_conll
from hpo.tasks.token_classification.reading import (
    Sentence,
    check_tags,
    read_spans,
    read_tokens,
    texts_of,
    whole_number,
    words_of,
)
from hpo.tasks.token_classification.schemes import SCHEMES, Scheme, converted, guessed, is_tag, types_of

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray[Any, Any]

CONLL = "conll"  # column of a table whose rows are CoNLL files: their text
SENTENCE = "sentence"  # column of a table whose rows are sentences


@dataclass(frozen=True, kw_only=True)
class TagSplit(Split):
    """Sentences with their tags.

    Attributes:
        sentences: The sentences, tags of entities in IOB2.
        labels: All tags of the study, by index; none for sentences whose tags are not known.
        entities: Whether the tags write entities.
    """

    sentences: Sequence[Sentence]
    labels: tuple[str, ...] = ()
    entities: bool = True

    @property
    def contents(self) -> list[tuple[str, ...]]:
        """The words of each sentence; those of a sentence for each of its predicates are the same."""
        return [sentence.words for sentence in self.sentences]

    @cached_property
    def targets(self) -> list[list[int]]:
        """The label of each word of each sentence; 0 if they are not known."""
        index = {label: i for i, label in enumerate(self.labels)}
        return [[index.get(tag, 0) for tag in sentence.tags] for sentence in self.sentences]

    def hashed(self, name: str) -> Iterator[bytes]:
        """Yield words, tags and predicate of each sentence."""
        for sentence in self.sentences:
            parts = (name, *sentence.words, "", *sentence.tags, str(sentence.predicate))
            yield "\0".join(parts).encode()

    def as_rows(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Return the words and the tags, and the number of the predicate if there is one."""
        return [
            {"words": list(each.words), "tags": list(each.tags)}
            | ({} if each.predicate is None else {"predicate": each.predicate})
            for each in self.sentences
        ]


# ---------------------------------------------------------------- from tables


def raw_table(keys: TagKeys, split: str, source: str | list[str], folder: Path) -> pd.DataFrame:
    """Return the rows of tables as they are, and a row for each CoNLL file; indexed by (file, row from 1).

    Raises:
        DataError: A file or data set cannot be read, has no rows or lacks a column.
    """
    import pandas as pd

    from hpo.core.paths import expand
    from hpo.data.readers import text_of
    from hpo.data.tables import read_table

    paths = [] if keys.dataset is not None else expand(source, folder)
    conll = [path for path in paths if is_conll(path)]
    if not conll:
        return read_table(keys, split, source, folder)
    texts = [text_of(path, keys.encoding) for path in conll]
    places = pd.MultiIndex.from_tuples([(str(path), 1) for path in conll])
    table = pd.DataFrame({CONLL: texts}, index=places)
    others = [str(path.absolute()) for path in paths if path not in conll]
    return pd.concat([table, read_table(keys, split, others, folder)]) if others else table


def parse(frames: dict[str, pd.DataFrame], keys: TagKeys) -> list[str]:
    """Put sentences in place of the rows of all splits, with tags of entities in IOB2, and return notes.

    Raises:
        DataError: Rows are not as they must be; it has the faults of all files.
    """
    remarks = Remarks()
    parsed = {name: _sentences(table, keys, remarks) for name, table in frames.items()}
    every = list(chain.from_iterable(parsed.values()))
    scheme = _scheme(every, keys)
    if scheme is not None:
        check_tags(every, scheme, remarks)
    remarks.refuse_faults()
    for name, sentences in parsed.items():
        if not sentences:
            raise DataError(f"{name} has no sentence with a word; check the columns under data")
        found = sentences if scheme is None else [_in_iob2(sentence) for sentence in sentences]
        frames[name] = _table(found, frames[name], keys)
    notes = remarks.notes()
    if scheme is not None and keys.scheme == "auto" and scheme.name != "IOB2" and keys.text is None:
        notes.append(f"the tags are read as {scheme.name}; if they are of another scheme, set data: {{scheme: ...}}")
    return notes


def _sentences(table: pd.DataFrame, keys: TagKeys, remarks: Remarks) -> list[Sentence]:
    if CONLL in table:
        files = table[table[CONLL].notna()]
        texts = zip(files.index, files[CONLL], strict=True)
        found = list(chain.from_iterable(read_conll(text, place[0], keys.conll, remarks) for place, text in texts))
        others = table[table[CONLL].isna()].drop(columns=CONLL)
        return [*found, *_sentences(others, keys, remarks)] if len(others) else found
    places, groups = list(table.index), list(map(str, table[keys.group])) if keys.group else None
    if keys.text is not None:
        return read_spans(list(table[keys.text]), list(table[keys.spans]), places, remarks, groups)
    predicates = None if keys.predicate is None else list(table[keys.predicate])
    tokens, tags = list(table[keys.tokens]), list(table[keys.tags])
    return read_tokens(tokens, tags, places, remarks, groups=groups, predicates=predicates)


def _scheme(sentences: Sequence[Sentence], keys: TagKeys) -> Scheme | None:
    """Return the scheme that a study names, or the one that fits best; None if the tags write no entities.

    Among tags with a prefix and a type, such as B-PER, one without is an error and not a class of its own.
    """
    if keys.scheme != "auto" or keys.text is not None:
        return SCHEMES.get("IOB2" if keys.text is not None else keys.scheme)
    tags = [sentence.tags for sentence in sentences]
    known = Counter(chain.from_iterable(tags))
    if "O" in known and any(is_tag(tag) and "-" in tag for tag in known):
        tags = [tuple(tag for tag in own if is_tag(tag)) for own in tags]
    return guessed(tags)


def _in_iob2(sentence: Sentence) -> Sentence:
    tags = converted(sentence.tags, SCHEMES["IOB2"])
    return replace(sentence, tags=tuple(tag if tag == "O" or "-" in tag else f"{tag}-_" for tag in tags))


def _table(sentences: Sequence[Sentence], raw: pd.DataFrame, keys: TagKeys) -> pd.DataFrame:
    """Return a table of sentences, with the column of groups if the study names one."""
    import pandas as pd

    places = [(sentence.source, sentence.row) for sentence in sentences]
    table = pd.DataFrame(index=pd.MultiIndex.from_tuples(places))
    table[SENTENCE] = np.array(sentences, dtype=object)
    if keys.group is not None:
        groups = dict(zip(raw.index, raw[keys.group], strict=True))
        table[keys.group] = [groups[place] for place in places]
    return table


def labels_of(frames: Mapping[str, pd.DataFrame], keys: TagKeys) -> tuple[tuple[str, ...], bool]:
    """Return all tags of all splits, by index, and whether they write entities.

    A type that occurs in short entities only has its I- too, and `O` is the first tag.
    """
    tags = {tag for table in frames.values() for sentence in table[SENTENCE] for tag in sentence.tags}
    if keys.scheme == PLAIN or not all(map(is_tag, tags)):
        return tuple(sorted(tags)), False
    return ("O", *(f"{prefix}-{name}" for name in types_of(tags) for prefix in "BI")), True


def split_of(table: pd.DataFrame, keys: TagKeys, labels: tuple[str, ...], entities: bool) -> TagSplit:
    """Return a table of sentences as a split."""
    sentences = list(table[SENTENCE])
    return TagSplit(
        sentences=sentences, labels=labels, entities=entities, members=groups_of(table, keys), places=table.index
    )


def groups_of(table: pd.DataFrame, keys: TagKeys) -> list[str] | None:
    """Return the group of each sentence: its document, or what a column says; None if they have none.

    A sentence without a document, of a study in which others have one, is of a group of its own.
    """
    groups = [sentence.group for sentence in table[SENTENCE]]
    if keys.group is None and len(set(groups)) == 1:
        return None
    return [group or f"{place[0]}, {place[1]}" for group, place in zip(groups, table.index, strict=True)]


# ---------------------------------------------------------------- without tags


def untagged(rows: Sequence[Mapping[str, Any]], keys: TagKeys) -> TagSplit:
    """Return rows of words, or of texts, as sentences whose tags are not known.

    Raises:
        DataError: A row has neither words nor a text, or lacks its predicate.
    """
    column = keys.tokens if keys.text is None else keys.text
    found = list[Sentence]()
    for row in rows:
        text, words, offsets = row[column], texts_of(row[column]), tuple[tuple[int, int], ...]()
        if words is None and isinstance(text, str):
            offsets = tuple(words_of(text))
            words = [text[start:end] for start, end in offsets]
        if words is None:
            raise DataError(f"{column} is {text!r} in a row, neither a text nor a list of words")
        predicate = None if keys.marks is None else _predicate(row[keys.marks], words)
        tags = ("",) * len(words)
        found.append(Sentence(tuple(words), tags, column, len(found) + 1, offsets=offsets, predicate=predicate))
    return TagSplit(sentences=found, entities=keys.scheme != PLAIN)


def _predicate(value: Any, words: Sequence[str]) -> int:
    number = int(value) if isinstance(value, str) and value.strip().isdecimal() else whole_number(value)
    if number is None or not 0 <= number < len(words):
        text = " ".join(words)[:60]
        raise DataError(f"predicate {value!r} is not the number, from 0, of one of the {len(words)} words of {text!r}")
    return number


def untagged_rows(file: Path, keys: TagKeys) -> list[dict[str, Any]]:
    """Return the words and the predicate of the sentences of a CoNLL file, which need not have tags.

    Raises:
        DataError: Predicates are to be marked, and not one word of a sentence is.
    """
    from hpo.data.readers import text_of

    column, remarks = keys.tokens if keys.text is None else keys.text, Remarks()
    found = read_words(text_of(file, keys.encoding), str(file), keys.conll, remarks)
    remarks.refuse_faults()
    return [{column: list(words)} | ({keys.marks: predicate} if keys.marks else {}) for words, predicate in found]
