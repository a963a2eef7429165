"""Which trials of a study this process owns: their locks, and the attempt of each.

A process may lose a lock, for example with its connection to PostgreSQL. Another process may adopt the trial then, and
raises its attempt. An owner that takes the lock again is still the owner if the attempt has not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optuna.trial import FrozenTrial, TrialState

from hpo.storage.trial_locks import locks_for

ATTEMPT = "hpo:attempt"
"""System attribute of a trial: how often it has been adopted after its owner died."""


class TrialOwnership:
    """The trials of one study that this process owns.

    Args:
        url: URL of the storage, where the locks are; None if no other process can see it.
        study: The study's name.
    """

    def __init__(self, url: str | None, study: str) -> None:
        self._locks = locks_for(url, study)
        self._attempts: dict[int, int] = {}

    @property
    def owned(self) -> Sequence[int]:
        """Numbers of the trials owned."""
        return sorted(self._attempts)

    def lock(self, number: int) -> bool:
        """Take a trial's lock; return False if anybody has it, this process too."""
        return self._locks.take(number)

    def own(self, row: FrozenTrial) -> None:
        """Own a trial whose lock is held, in the attempt that its row has."""
        self._attempts[row.number] = attempt_of(row)

    def release(self, number: int) -> None:
        """Give a trial and its lock up; nothing happens if it is not owned."""
        self._attempts.pop(number, None)
        self._locks.release(number)

    def close(self) -> None:
        """Give all trials up."""
        self._attempts.clear()
        self._locks.close()

    def still_owns(self, number: int, read: Callable[[], FrozenTrial]) -> bool:
        """Return whether a trial is owned and no other process can own it now; a lost lock is taken again.

        Args:
            number: The trial's.
            read: Reads its row from the storage.
        """
        attempt = self._attempts.get(number)
        if attempt is None or self._locks.held(number):
            return attempt is not None
        if not self._locks.take(number):
            return False
        row = read()
        return attempt_of(row) == attempt and row.state == TrialState.RUNNING


def adoption_of(row: FrozenTrial) -> list[int]:
    """Return the value of `ATTEMPT` for a new owner of a running trial whose owner died.

    Returns:
        The attempt; how many owners in a row, this death included, have added no evaluation; the evaluations so far.
    """
    _, fruitless, reported = row.system_attrs.get(ATTEMPT, (0, 0, -1))
    evaluations = len(row.intermediate_values)
    return [attempt_of(row) + 1, fruitless + 1 if evaluations <= reported else 1, evaluations]


def attempt_of(row: FrozenTrial) -> int:
    """Return how often a trial has been adopted."""
    return int(row.system_attrs.get(ATTEMPT, (0,))[0])


def fruitless(row: FrozenTrial) -> int:
    """Return how many owners in a row died without one more evaluation of a trial."""
    return int(row.system_attrs.get(ATTEMPT, (0, 0))[1])
