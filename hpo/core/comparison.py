"""What a pruner compares of the trials: their values, or a metric that is reported beside them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from hpo.core.errors import ConfigError, DivergedError, Problem

METRICS_AT = "hpo:metrics_at"
"""System attribute of a trial: metric -> step -> what it was there; of the metrics that pruning needs."""

TIE_BREAK = "loss"
"""The metric that orders trials of equal value. Lower is better."""

Key = tuple[float, ...]
"""What orders two trials at a step; lower is better."""


@dataclass(frozen=True)
class Comparison:
    """What a pruner compares.

    Attributes:
        direction: `maximize` or `minimize`, of what is compared.
        metric: Reported beside the value, and compared in its place; None compares the values themselves, and the
            loss where values are equal.
    """

    direction: str
    metric: str | None = None

    def kept(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return what of an evaluation's metrics is to be kept with its step."""
        name = self.metric or TIE_BREAK
        return {name: metrics[name]} if name in metrics and math.isfinite(metrics[name]) else {}

    def require(self, metrics: Mapping[str, float]) -> None:
        """Check that an evaluation can be compared.

        Raises:
            ConfigError: It lacks the metric.
            DivergedError: The metric is not finite.
        """
        if self.metric is None:
            return
        if self.metric not in metrics:
            reported = f"it reports {', '.join(metrics)}" if metrics else "it reports none"
            message = f"{self.metric!r} is not a metric that the objective reports beside the value ({reported})"
            raise ConfigError("the study", [Problem(("prune_on",), f"{message}; see `metrics` of hpo.Evaluation")])
        if not math.isfinite(metrics[self.metric]):
            raise DivergedError(f"{self.metric}, which prune_on names, is {metrics[self.metric]}")

    def curve(self, row: FrozenTrial) -> dict[int, Key]:
        """Return step -> key of a trial's evaluations; of those that lack the metric, none."""
        sign = -1 if self.direction == "maximize" else 1
        beside = {int(step): value for step, value in self._beside(row).items()}
        if self.metric is not None:
            return {step: (sign * value,) for step, value in beside.items()}
        values = row.intermediate_values
        return {step: (sign * value, beside.get(step, math.inf)) for step, value in values.items()}

    def lacks_metrics(self, row: FrozenTrial) -> bool:
        """Return whether a trial's last evaluation has nothing beside its value."""
        return row.last_step is not None and str(row.last_step) not in self._beside(row)

    def seen(self, row: FrozenTrial) -> FrozenTrial | None:
        """Return a row as Optuna's pruners are to see it; None if it has ended without the metric."""
        if self.metric is None:
            return row
        seen = copy.copy(row)
        seen.intermediate_values = {int(step): value for step, value in self._beside(row).items()}
        if row.state == TrialState.COMPLETE:
            if not seen.intermediate_values:
                return None
            choose = max if self.direction == "maximize" else min
            seen.values = [choose(seen.intermediate_values.values())]
        return seen

    def _beside(self, row: FrozenTrial) -> Mapping[str, float]:
        found: Mapping[str, float] = row.system_attrs.get(METRICS_AT, {}).get(self.metric or TIE_BREAK, {})
        return found


def metrics_at(row: FrozenTrial, step: int, metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the attribute `METRICS_AT` of a trial with the metrics of one more step."""
    before: Mapping[str, Mapping[str, float]] = row.system_attrs.get(METRICS_AT, {})
    added = {name: {**before.get(name, {}), str(step): value} for name, value in metrics.items()}
    return {**{name: dict(steps) for name, steps in before.items()}, **added}
