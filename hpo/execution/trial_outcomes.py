"""What scores and exceptions mean for a trial, in one place."""

from __future__ import annotations

import math
import traceback
from typing import Any

import optuna
from optuna.trial import TrialState

from hpo.core.errors import DivergedError, TrialEndedError, hidden

RETRIES: dict[type[Exception], int] = {ConnectionError: 3, TimeoutError: 3}
"""Causes that may pass, and how often a trial is run again for them; anything else would only come again."""

RETRIED = "hpo:retried"
"""System attribute of a trial: how often it was."""


def retries(error: Exception) -> int:
    """Return how often a trial is run again for what it raised."""
    return next((most for kind, most in RETRIES.items() if isinstance(error, kind)), 0)


def finite_score(value: Any) -> float:
    """Return a score as a float.

    Raises:
        DivergedError: It is NaN or infinite; Optuna would make -inf the best value of a loss.
        TypeError: It is not a number.
    """
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(f"a score must be a number, not {value!r}")
    number = float(value)
    if not math.isfinite(number):
        raise DivergedError(f"the score is {number}")
    return number


def state_of(error: Exception) -> tuple[TrialState, dict[str, Any]]:
    """Return the state and the attributes that an exception in training means."""
    if isinstance(error, TrialEndedError):
        return TrialState.PRUNED, {"reason": error.reason, "detail": str(error)}
    if isinstance(error, optuna.TrialPruned):
        return TrialState.PRUNED, {"reason": "pruner"}
    text = hidden("".join(traceback.format_exception(error)))
    return TrialState.FAIL, {"reason": type(error).__name__, "detail": hidden(str(error)), "traceback": text}
