"""The keys of `data:` for extractive question answering: columns, windows, and the threshold of no answer."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from hpo.data.keys import DataKeys, Place
from hpo.tasks.question_answering.questions import Columns


class QuestionKeys(DataKeys):
    """Rows of a question, a context and the answers in it. Files in SQuAD's own JSON need no column names."""

    id: str = "id"
    """Column of the question's id, of which a file has each once."""
    question: str = "question"
    """Column of the question."""
    context: str = "context"
    """Column of the text that is searched for the answer."""
    answers: str = "answers"
    """Column of the answers: `{text: [...], answer_start: [...]}`, or a list of `{text, answer_start}`."""
    stride: int | None = Field(default=None, ge=0)
    """Tokens that two windows of a long context have in common; a third of `max_length` if empty."""
    max_answer_length: int = Field(default=30, ge=1)
    """Tokens of an answer at most."""
    no_answer_threshold: float | None = None
    """The question has no answer if no answer scores better than the best answer by more than this; fitted on the
    validation split if empty. Read only if questions of train have no answer."""

    @property
    def named(self) -> Columns:
        """The names of the columns."""
        return Columns(self.id, self.question, self.context, self.answers)

    def columns(self) -> Iterator[tuple[Place, str]]:
        """Yield (place in `data:`, column) of each column that the rows of every split must have."""
        yield from (((name,), column) for name, column in vars(self.named).items())
        yield from super().columns()

    def overlap(self, max_length: int) -> int:
        """Return the tokens that two windows have in common."""
        return max_length // 3 if self.stride is None else self.stride
