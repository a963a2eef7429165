"""The keys of `data:` for masked language models."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from hpo.data.keys import DataKeys, Place


class DocumentKeys(DataKeys):
    """Rows of plain text, a document each."""

    text: str = "text"
    """Column of the documents."""
    masked: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens of each row that are to be predicted."""

    def columns(self) -> Iterator[tuple[Place, str]]:
        """Yield (place in `data:`, column) of each column that the rows of every split must have."""
        yield ("text",), self.text
        yield from super().columns()
