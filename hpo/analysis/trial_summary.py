"""Facts of one trial as reports and the terminal show them."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.core.formatting import plain
from hpo.execution.audit import AUDITS
from hpo.execution.confirmation import REPEATS
from hpo.search.trial_order import is_added


def in_words(name: str, value: Any) -> Any:
    """Return the value of a hyperparameter; in words if it is None, which leaves the model as it is."""
    if value is None:
        return "the model's own" if name == "dropout" else "None"
    return value


def seconds(trial: FrozenTrial) -> float | None:
    """Return the seconds that a trial trained, as it recorded them; else its duration, if it has ended."""
    trained = trial.user_attrs.get("seconds")
    if isinstance(trained, int | float):
        return float(trained)
    return trial.duration.total_seconds() if trial.duration else None


def finite_value(trial: FrozenTrial) -> float | None:
    """Return a trial's value, or None if it has none or it is not finite."""
    value = trial.values[0] if trial.values else None
    return value if value is not None and math.isfinite(value) else None


def remarks(trial: FrozenTrial) -> str:
    """Return a trial's remarks: why it ended, and whether it is the published default or a duplicate."""
    attrs = trial.user_attrs
    said = ["published default"] if attrs.get("baseline") else []
    if is_added(trial):
        said.append("added by the user")
    if attrs.get(REPEATS) is not None:
        said.append(f"{plain(str(attrs[REPEATS]))} again")
    if attrs.get(AUDITS) is not None:
        said.append(f"trial {plain(str(attrs[AUDITS]))} to its end")
    if attrs.get("reason"):
        said.append(plain(str(attrs["reason"]).replace("_", " ")))
    if trial.state == TrialState.FAIL and attrs.get("detail"):
        said[-1:] = [": ".join([*said[-1:], textwrap.shorten(plain(str(attrs["detail"])), 160)])]
    if attrs.get("duplicate_of") is not None:
        said.append(f"duplicate of {attrs['duplicate_of']}")
    if attrs.get("stopped_early_at") is not None:
        said.append(f"stopped by patience at {plain(str(attrs['stopped_early_at']))}")
    if attrs.get("collapsed") is True:
        said.append("collapsed")
    return ", ".join(said)
