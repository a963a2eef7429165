"""Metrics that are stored with the step of an evaluation, beside the trial's intermediate value."""

from __future__ import annotations

from collections.abc import Mapping

from optuna.trial import FrozenTrial

METRICS_AT = "hpo:metrics_at"
"""System attribute of a trial: metric -> step -> value, of the metrics that pruning needs."""


def metrics_at(trial: FrozenTrial, step: int, metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return a trial's attribute `METRICS_AT` with the metrics of one more step."""
    before: Mapping[str, Mapping[str, float]] = trial.system_attrs.get(METRICS_AT, {})
    added = {name: {**before.get(name, {}), str(step): value} for name, value in metrics.items()}
    return {**{name: dict(steps) for name, steps in before.items()}, **added}
