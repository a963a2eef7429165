"""The keys of one of several tasks, under `tasks:` of a study file."""

from __future__ import annotations

from pydantic import Field

from hpo.core.settings import Settings
from hpo.data.keys import DataKeys

TOGETHER = ("single_label", "multi_label", "regression", "token_classification", "question_answering")
"""The tasks that can be trained together: their heads read one sequence of tokens, and give out no tokens."""


class TaskKeys(Settings):
    """One of several tasks."""

    task: str = "auto"
    """A name in `TOGETHER`; `auto` takes a task of classification or regression, by the labels."""
    data: DataKeys
    """Its data, with the keys of the task."""
    metric: str | None = None
    """Its metric, of which more is better; the task's default if empty."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Weight of its metric in the weighted mean, which is the value of a trial."""
