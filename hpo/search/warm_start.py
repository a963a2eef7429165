"""A warm start: a prior and first configurations that are learned from earlier studies of the same space.

Scores of two studies do not compare, ranks do. So each study ranks its own trials, and what is learned is where its
better quarter lies (after Salinas et al., 2020, "A quantile-based approach for hyperparameter transfer learning", who
learn a model of the ranks). The best trial counts most, with weight 1; the weight falls evenly towards the end of the
quarter. The prior of a number is the normal distribution with the weighted mean and variance of the better trials, on
the parameter's own scale; a choice is as probable as its weight among them. One more trial, spread over the whole
range, is added to each: a few equal values do not make a narrow prior.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict, ValidationError

from hpo.core.formatting import number, plain
from hpo.search.cross_entropy import number_at, place_of, spread_at
from hpo.search.trial_marks import is_baseline
from hpo.space.parameters import Categorical, Near, Parameter, Weights
from hpo.space.search_space import SearchSpace

STORED = "warm_start"
"""User attribute of a study: its warm start, as JSON values."""

FEWEST = 4
"""Ranked trials of an earlier study, of which one is in its better quarter."""

BETTER = 4
"""One ranked trial in `BETTER`, rounded up, is among the better ones."""

UNIFORM = 1 / 12
"""Variance of a place drawn evenly from 0 to 1."""


class Source(BaseModel):
    """An earlier study.

    Attributes:
        name: Its name, as the user gave it.
        ranked: Trials that were ranked.
        better: How many of them the prior was learned from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    ranked: int
    better: int


class WarmStart(BaseModel):
    """What a study has from earlier ones.

    Attributes:
        sources: The earlier studies, in the order in which the user named them.
        priors: Parameter -> its prior.
        configurations: The best configuration of each earlier study, without repetitions.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    sources: list[Source]
    priors: dict[str, Near | Weights]
    configurations: list[dict[str, Any]]

    @property
    def asked(self) -> list[str]:
        """The names of the earlier studies."""
        return [source.name for source in self.sources]

    def applied(self, space: SearchSpace) -> SearchSpace:
        """Return a space with these priors in place of its own, and with these configurations tried first."""
        parameters = {name: _with_prior(each, self.priors.get(name)) for name, each in space.parameters.items()}
        return replace(space, parameters=parameters, configurations=(*self.configurations, *space.configurations))

    def sentence(self) -> str:
        """Return from which studies it is, and what it expects."""
        sources = ", ".join(f"{plain(each.name)} ({each.better} of {each.ranked} trials)" for each in self.sources)
        expected = ", ".join(f"{plain(name)} {_expected(prior)}" for name, prior in self.priors.items())
        count = len(self.configurations)
        tried = f"the best configuration{'s' * (count > 1)} of {'them is' if count == 1 else f'them, {count}, are'}"
        return f"warm start: learned from the better quarter of {sources}; it expects {expected}; {tried} tried first"


def stored_in(attrs: Mapping[str, Any]) -> WarmStart | None:
    """Return the warm start that is among a study's attributes; None if there is none that can be read."""
    try:
        return WarmStart.model_validate(attrs[STORED])
    except (KeyError, ValidationError):
        return None


def ranked(trials: Sequence[FrozenTrial], direction: str) -> list[FrozenTrial]:
    """Return the trials of a study that tell something of its space, the best first.

    Only values after equal training are compared: of trials that have completed, and of those that the pruner ended at
    the same step. A trial that was trained on was the better one where it was compared, and comes first. Trials that
    diverged come last. Duplicates, and trials that another cause has ended, are left out. So is the published default
    of a study that prunes: it is trained to its end whatever it scores.

    Args:
        trials: The trials, in any state.
        direction: `maximize` or `minimize`.
    """
    sign = -1 if direction == "maximize" else 1
    known = [trial for trial in trials if "duplicate_of" not in trial.user_attrs]
    prunes = any(_ended_by(trial, "pruner") for trial in known)
    keys = {trial.number: _key(trial, sign) for trial in known if not (prunes and is_baseline(trial))}
    found = [trial for trial in known if keys.get(trial.number) is not None]
    return sorted(found, key=lambda trial: (*keys[trial.number], trial.number))  # type: ignore[misc]


def _key(trial: FrozenTrial, sign: int) -> tuple[float, float, float] | None:
    """Return what orders the trials of a study, lower first; None if a trial tells nothing."""
    if trial.state == TrialState.COMPLETE and trial.value is not None and math.isfinite(trial.value):
        return 0, 0, sign * trial.value
    if _ended_by(trial, "pruner") and trial.last_step is not None:
        return 1, -trial.last_step, sign * trial.intermediate_values[trial.last_step]
    return (2, 0, 0) if _ended_by(trial, "diverged") else None


def _ended_by(trial: FrozenTrial, reason: str) -> bool:
    return trial.state == TrialState.PRUNED and trial.user_attrs.get("reason") == reason


def learn(space: SearchSpace, studies: Mapping[str, Sequence[FrozenTrial]]) -> WarmStart:
    """Learn a warm start.

    Args:
        space: The search space, which is that of the earlier studies.
        studies: Name -> the trials of an earlier study as `ranked` returns them, `FEWEST` or more.
    """
    better = {name: trials[: -(-len(trials) // BETTER)] for name, trials in studies.items()}
    weights = [1 - rank / len(trials) for trials in better.values() for rank in range(len(trials))]
    points = [trial.params for trials in better.values() for trial in trials]
    priors = {name: _learned(name, each, points, weights) for name, each in space.parameters.items()}
    best = [dict(trials[0].params) for trials in better.values()]
    return WarmStart(
        sources=[Source(name=n, ranked=len(studies[n]), better=len(trials)) for n, trials in better.items()],
        priors={name: prior for name, prior in priors.items() if prior is not None},
        configurations=[point for index, point in enumerate(best) if point not in best[:index]],
    )


def _learned(
    name: str, parameter: Parameter, points: Sequence[Mapping[str, Any]], weights: Sequence[float]
) -> Near | Weights | None:
    """Return the prior of a parameter; None if it has one value only, or no better trial has it."""
    found = [(point[name], weight) for point, weight in zip(points, weights, strict=True) if name in point]
    distribution = parameter.distribution()
    if distribution.single() or not found:
        return None
    values, counts = zip(*found, strict=True)
    if isinstance(parameter, Categorical):
        even = 1 / len(parameter.values)
        return Weights(weights=[even + sum(c for v, c in found if v == choice) for choice in parameter.values])
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    places, total = np.array([place_of(distribution, value) for value in values]), sum(counts)
    mean = float(np.average(places, weights=counts))
    variance = (float(counts @ (places - mean) ** 2) + UNIFORM) / (total + 1)
    return Near(mean=number_at(distribution, mean), spread=spread_at(distribution, math.sqrt(variance)))


def _with_prior(parameter: Parameter, prior: Near | Weights | None) -> Parameter:
    return parameter if prior is None else replace(parameter, prior=prior)  # type: ignore[arg-type]


def _expected(prior: Near | Weights) -> str:
    if isinstance(prior, Near):
        return f"near {number(prior.mean)} (spread {number(prior.spread, 2)})"
    return "by weights " + " : ".join(number(weight, 2) for weight in prior.weights)
