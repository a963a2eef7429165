"""The outcomes of a trial: which scores are valid, and which state an exception leads to."""

from __future__ import annotations

import math
import traceback
from typing import Any

import optuna
from optuna.trial import TrialState

from hpo.core.errors import DivergedError, TrialEndedError, hidden

RETRIES: dict[type[Exception], int] = {ConnectionError: 3, TimeoutError: 3}
"""Exceptions that may not occur again -> how often a trial is retried after one; all others are final."""

RETRIED = "hpo:retried"
"""System attribute of a trial: how often it was retried."""


def retries(error: Exception) -> int:
    """Return how often a trial may be retried after an exception."""
    return next((limit for kind, limit in RETRIES.items() if isinstance(error, kind)), 0)


def finite_score(value: Any) -> float:
    """Return a score as a float.

    Raises:
        DivergedError: It is NaN or infinite. In Optuna, -inf would be the best value of a loss.
        TypeError: It is not a number.
    """
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(f"a score must be a number, not {value!r}")
    number = float(value)
    if not math.isfinite(number):
        raise DivergedError(f"the score is {number}")
    return number


def failed_in_a_row(study: optuna.Study, count: int) -> str:
    """Return why a study stops after so many failed trials in a row, and what to do."""
    last = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.FAIL][-1].user_attrs
    return (
        f"{count} trials failed in a row, the last with {last['reason']}: {last['detail']}. Its attribute `traceback` "
        f"says where (hpo trials {study.study_name} --json). Mend the cause and run the same study again"
    )


def state_of(error: Exception) -> tuple[TrialState, dict[str, Any]]:
    """Return the state and the attributes of a trial that an exception in training has ended."""
    if isinstance(error, TrialEndedError):
        return TrialState.PRUNED, {"reason": error.reason, "detail": str(error)}
    if isinstance(error, optuna.TrialPruned):
        return TrialState.PRUNED, {"reason": "pruner"}
    text = hidden("".join(traceback.format_exception(error)))
    return TrialState.FAIL, {"reason": type(error).__name__, "detail": hidden(str(error)), "traceback": text}
