"""Who is told of a study while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from optuna.trial import FrozenTrial

from hpo.core.trainer import Evaluation, Seen


class Observer(Protocol):
    """What is told about a study while it runs; what a subclass leaves out is not listened to."""

    def opened(self, name: str, metric: str, direction: str, total: int, finished: Sequence[FrozenTrial]) -> None:
        """The study is open; `finished` are the rows that ended in earlier runs."""
        return

    def follow(self, seen: Callable[[], Mapping[int, Seen]]) -> None:
        """`seen` tells how far each trial is that trains now; it may be called at any time, from any thread."""
        return

    def started(self, number: int, params: Mapping[str, Any]) -> None:
        """A trial has been loaded."""
        return

    def evaluated(self, number: int, evaluation: Evaluation) -> None:
        """A trial has been scored."""
        return

    def ended(self, trial: FrozenTrial) -> None:
        """A trial has been told."""
        return

    def note(self, message: str) -> None:
        """Something the user should read."""
        return

    def closed(self) -> None:
        """The study is at rest."""
        return


class Silent(Observer):
    """A watcher that looks away."""
