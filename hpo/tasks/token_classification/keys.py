"""The keys of `data:` for token classification: where words and tags are, and how they are written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from hpo.core.settings import Mark
from hpo.data.keys import DataKeys, Place
from hpo.tasks.token_classification.conll import CONLL_ENDINGS, Columns

PLAIN = "none"  # the scheme of tags that name no entities


class TagKeys(DataKeys):
    """Sentences with a tag for each word: CoNLL files, rows of tokens and tags, or rows of a text with spans."""

    tokens: str = "tokens"
    """Column of the words, a list of texts a row."""
    tags: str = "tags"
    """Column of the tags, as many as words."""
    text: str | None = None
    """Column of the text, for rows of a text with spans in place of tokens and tags."""
    spans: str = "spans"
    """Column of a text's spans: `[{start: 0, end: 3, label: PER}]`, in characters, without the end."""
    word_column: int = 1
    """Column of the word in CoNLL files; 1 is the first one, -1 the last one."""
    tag_column: int = -1
    """Column of the tag in CoNLL files."""
    predicate_column: Annotated[int | None, Mark.NEWER] = None
    """Column of CoNLL files in which one word of each sentence is marked: the predicate whose roles the tags are. The
    others have `-`, `_`, `0` or `O` there."""
    comments: bool = False
    """Whether lines of CoNLL files that begin with `#` are comments, as in CoNLL-U."""
    scheme: Literal["auto", "none", "IO", "IOB1", "IOB2", "BIOES", "BILOU"] = "auto"
    """How the tags write entities; `none` if each tag is a class of its own, as a part of speech."""
    predicate: str | None = None
    """Column of the number of the word, from 0, whose roles the tags are; it is marked with `*` for the model."""
    label_all_pieces: bool = False
    """Whether all pieces of a word are trained on, not the first one alone."""
    stride: int = Field(default=32, ge=0)
    """Most tokens in which two windows of a long sentence overlap."""

    @property
    def conll(self) -> Columns:
        """The columns of CoNLL files."""
        return Columns(self.word_column, self.tag_column, self.comments, self.predicate_column)

    @property
    def marks(self) -> str | None:
        """The column of the number of the predicate in rows for predictions; None if there are no predicates."""
        return "predicate" if self.predicate is None and self.predicate_column is not None else self.predicate

    def columns(self) -> Iterator[tuple[Place, str]]:
        """Yield (place in `data:`, column) of each column that the rows of every split must have."""
        for key in ("tokens", "tags") if self.text is None else ("text", "spans"):
            yield (key,), getattr(self, key)
        if self.predicate:
            yield ("predicate",), self.predicate
        yield from super().columns()

    def labels(self) -> tuple[str, ...]:
        """Return the column of tags, whose numbers a data set of the Hub has names for."""
        return (self.tags,) if self.text is None else ()

    def conll_names(self) -> list[str]:
        """Return the names of the CoNLL files of all splits."""
        return [name for name in self._names() if is_conll(Path(name))]

    def table_names(self) -> list[str]:
        """Return the names of the other files, or of the data set."""
        return [name for name in self._names() if not is_conll(Path(name))] if self.dataset is None else [self.dataset]

    def _names(self) -> list[str]:
        if self.dataset is not None:
            return []
        given = (names for names in (self.train, self.validation, self.test) if isinstance(names, str | list))
        return [name for names in given for name in ([names] if isinstance(names, str) else names)]

    @field_validator("word_column", "tag_column", "predicate_column")
    @classmethod
    def _counted_from_one(cls, value: int | None) -> int | None:
        if value == 0:
            raise ValueError("columns are counted from 1, or from -1 at the end of the line, not from 0")
        return value


def is_conll(path: Path) -> bool:
    """Return whether a file is read as CoNLL, by its ending."""
    return path.suffix.lower() in CONLL_ENDINGS
