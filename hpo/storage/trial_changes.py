"""What is written to trials at once, and the contract of a writer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState


@dataclass
class Change:
    """What to write to a trial.

    Attributes:
        params: Name -> (value as Optuna stores it, distribution).
        curve: Step -> intermediate value.
        user: User attributes.
        system: System attributes.
        state: The new state; None leaves it as it is.
        values: Values of the objective, told with a state.
    """

    params: dict[str, tuple[float, BaseDistribution]] = field(default_factory=dict)
    curve: dict[int, float] = field(default_factory=dict)
    user: dict[str, Any] = field(default_factory=dict)
    system: dict[str, Any] = field(default_factory=dict)
    state: TrialState | None = None
    values: Sequence[float] | None = None


class TrialWriter(Protocol):
    """Reads and writes trials of a storage."""

    def read(self, trial_id: int) -> FrozenTrial:
        """Return a trial's row."""

    def write(self, changes: Mapping[int, Change]) -> Collection[int]:
        """Write changes, trial id -> change; return the ids of the trials that have ended, which are not changed."""

    def add(self, study_id: int, rows: Sequence[FrozenTrial]) -> None:
        """Add one or more waiting rows in the given order; they may have attributes and nothing else."""
