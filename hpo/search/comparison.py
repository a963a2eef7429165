"""How a pruner compares trials: by their intermediate values, or by another metric reported with them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from hpo.core.errors import ConfigError, DivergedError, Problem
from hpo.storage.criteria import NO_CRITERIA, Criteria, violation
from hpo.storage.step_metrics import METRICS_AT

TIE_BREAK = "loss"
"""The metric that orders trials of equal value. Lower is better."""

Key = tuple[float, ...]
"""What orders trials at a step. Lower is better."""


@dataclass(frozen=True)
class Comparison:
    """What a pruner compares.

    Attributes:
        direction: `maximize` or `minimize`, of what is compared.
        metric: A metric that is compared in place of the value. None compares the values, and the loss where values
            are equal.
        criteria: The study's limits. Trials that are beyond them are worse than all others, the further the worse.
    """

    direction: str
    metric: str | None = None
    criteria: Criteria = NO_CRITERIA

    def stored(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics of an evaluation that are stored with its step."""
        names = dict.fromkeys((self.metric or TIE_BREAK, *(limit.name for limit in self.criteria.limits)))
        return {name: metrics[name] for name in names if name in metrics and math.isfinite(metrics[name])}

    def require(self, metrics: Mapping[str, float]) -> None:
        """Check that an evaluation can be compared.

        Raises:
            ConfigError: The metric is missing.
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

    def curve(self, trial: FrozenTrial) -> dict[int, Key]:
        """Return step -> key of a trial's evaluations, without those that lack the metric."""
        sign = -1 if self.direction == "maximize" else 1
        stored = {int(step): value for step, value in self._stored(trial).items()}
        if self.metric is not None:
            keys: dict[int, Key] = {step: (sign * value,) for step, value in stored.items()}
        else:
            values = trial.intermediate_values
            keys = {step: (sign * value, stored.get(step, math.inf)) for step, value in values.items()}
        if not self.criteria.limits:
            return keys
        excess = {step: violation(self.criteria.seen_at(trial, step)) for step in keys}
        return {step: (math.inf, excess[step], *key) if excess[step] else key for step, key in keys.items()}

    def value_of(self, key: Key) -> float:
        """Return the value in a key, also in that of a trial that is beyond a limit."""
        value = key[2] if math.isinf(key[0]) else key[0]
        return -value if self.direction == "maximize" else value

    def lacks_metrics(self, trial: FrozenTrial) -> bool:
        """Return whether no metric is stored with a trial's last evaluation."""
        return trial.last_step is not None and str(trial.last_step) not in self._stored(trial)

    def seen(self, trial: FrozenTrial) -> FrozenTrial | None:
        """Return a trial as Optuna's pruners see it, with the metric as its value.

        Returns:
            None for a completed trial without the metric, or beyond a limit: a trial is compared with those within.
        """
        completed = trial.state == TrialState.COMPLETE
        if completed and self.criteria.limits and violation(self.criteria.seen(trial)):
            return None
        if self.metric is None:
            return trial
        seen = copy.copy(trial)
        seen.intermediate_values = {int(step): value for step, value in self._stored(trial).items()}
        if trial.state == TrialState.COMPLETE:
            if not seen.intermediate_values:
                return None
            choose = max if self.direction == "maximize" else min
            seen.values = [choose(seen.intermediate_values.values())]
        return seen

    def _stored(self, trial: FrozenTrial) -> Mapping[str, float]:
        """Return step -> the metric that is stored there."""
        found: Mapping[str, float] = trial.system_attrs.get(METRICS_AT, {}).get(self.metric or TIE_BREAK, {})
        return found
