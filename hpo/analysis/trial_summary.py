"""Facts of one trial as reports and the terminal show them."""

from __future__ import annotations

import textwrap
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.core.formatting import number, plain
from hpo.core.numbers import finite_or_none
from hpo.execution.audit import AUDITS
from hpo.execution.confirmation import REPEATS
from hpo.search.decisions import Decision, decisions_of
from hpo.search.trial_marks import is_added, paused_at


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
    return None if value is None else finite_or_none(value)


def remarks(trial: FrozenTrial) -> str:
    """Return a trial's remarks: why it ended or waits, and whether it is the published default or a duplicate."""
    attrs = trial.user_attrs
    said = ["published default"] if attrs.get("baseline") else []
    if is_added(trial):
        said.append("added by the user")
    if attrs.get(REPEATS) is not None:
        said.append(f"{plain(str(attrs[REPEATS]))} again")
    if attrs.get(AUDITS) is not None:
        said.append(f"trial {plain(str(attrs[AUDITS]))} to its end")
    if attrs.get("reason"):
        said.append(plain(str(attrs["reason"]).replace("_", " ")) + _needed(trial))
    if (step := paused_at(trial)) is not None:
        said.append(f"paused at {step:,}")
    if trial.state == TrialState.FAIL and attrs.get("detail"):
        said[-1:] = [": ".join([*said[-1:], textwrap.shorten(plain(str(attrs["detail"])), 160)])]
    if attrs.get("duplicate_of") is not None:
        said.append(f"duplicate of {attrs['duplicate_of']}")
    if attrs.get("stopped_early_at") is not None:
        said.append(f"stopped by patience at {plain(str(attrs['stopped_early_at']))}")
    if attrs.get("collapsed") is True:
        said.append("collapsed")
    return ", ".join(said)


def _needed(trial: FrozenTrial) -> str:
    """Return what a trial lacked that the pruner has ended, as far as it is stored."""
    stored = decisions_of(trial)
    if trial.user_attrs["reason"] != "pruner" or not stored:
        return ""
    step, judged = stored[-1]
    if judged.decision is not Decision.PRUNE or judged.needed is None or judged.why is not None:
        return ""
    return f": {number(judged.value)} at {step:,}, {number(judged.needed)} needed"
