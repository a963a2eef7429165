"""Events of a running study, and the class whose methods receive them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hpo.core.trainer import Evaluation, Seen

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


class Observer:
    """Receives the events of a running study. Every method does nothing; a subclass overrides those it needs."""

    def opened(self, name: str, metric: str, direction: str, total: int, finished: Sequence[FrozenTrial]) -> None:
        """The study has been opened.

        Args:
            name: The study's name.
            metric: What it optimises.
            direction: `maximize` or `minimize`.
            total: Trials of the whole study.
            finished: The trials that ended in earlier runs.
        """

    def follow(self, seen: Callable[[], Mapping[int, Seen]]) -> None:
        """Receive a function that returns trial number -> progress of the trials in training.

        The function may be called at any time, from any thread.
        """

    def started(self, number: int, params: Mapping[str, Any]) -> None:
        """A trial has been loaded."""

    def evaluated(self, number: int, evaluation: Evaluation) -> None:
        """A trial has been evaluated."""

    def ended(self, trial: FrozenTrial) -> None:
        """A trial has been told."""

    def note(self, message: str) -> None:
        """There is a message for the user."""

    def closed(self) -> None:
        """The study has stopped running."""


class Silent(Observer):
    """An observer that ignores every event."""
