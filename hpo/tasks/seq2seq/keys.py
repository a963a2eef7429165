"""The keys of `data:` for sequence to sequence: the columns of sources and targets, and the length of a target."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from hpo.core.settings import Mark
from hpo.data.keys import DataKeys, Place

LANGUAGES = ("source_language", "target_language")


class PairKeys(DataKeys):
    """Rows of a source and the target that a model makes of it."""

    source: str = "source"
    """Column of the source."""
    target: str = "target"
    """Column of the target."""
    pair: Annotated[str | None, Mark.NEWER] = None
    """Column of objects that hold both, as `translation: {en: ..., de: ...}`; `source` and `target` are names in it."""
    prefix: Annotated[str, Mark.NEWER] = ""
    """Text that is put before each source, with its blank: T5 knows its task by one, e.g. "summarize: "."""
    source_language: Annotated[str | None, Mark.NEWER] = None
    """Code of the sources' language, as the model's tokenizer writes it: `en_XX` of mBART, `eng_Latn` of NLLB."""
    target_language: Annotated[str | None, Mark.NEWER] = None
    """Code of the targets' language. A tokenizer that knows languages needs both codes; others refuse them."""
    max_target_length: int = Field(default=128, ge=2)
    """Tokens after which a target is cut, the end token included."""

    def columns(self) -> Iterator[tuple[Place, str]]:
        """Yield (place in `data:`, column) of each column that the rows of every split must have."""
        if self.pair is not None:
            yield ("pair",), self.pair
        else:
            yield ("source",), self.source
            yield ("target",), self.target
        yield from super().columns()
