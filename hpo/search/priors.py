"""Draws from the priors of a search space: where its author expects the best values.

A prior is used as PriorBand does (Mallik et al., 2023): it is mixed with uniform draws, so that nothing is excluded,
and what trials have shown replaces it. Until `FEWEST` trials have a score, every other trial is drawn from it.
`benchmarks/search_quality.py` shows what a right and a wrong prior change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.distributions import FloatDistribution, IntDistribution

from hpo.search.cross_entropy import FEWEST, place_of, reflected, share_of, value_at
from hpo.space.parameters import Categorical, Float, Int, Near, Weights
from hpo.space.search_space import SearchSpace


def draws_from_prior(space: SearchSpace, number: int, scored: int) -> bool:
    """Return whether a trial is drawn from the priors of a space.

    Args:
        space: The search space.
        number: The trial's number.
        scored: Trials that have a score.
    """
    return scored < FEWEST and number % 2 == 0 and any(parameter.prior for parameter in space.parameters.values())


def draw(space: SearchSpace, seed: int) -> Mapping[str, Any]:
    """Return a point of the space: from the prior of each parameter that has one, else drawn by the sampler.

    Returns:
        Name -> value, of the parameters with a prior.
    """
    random = np.random.default_rng(seed)
    return {
        name: _draw(parameter, parameter.prior, random)
        for name, parameter in space.parameters.items()
        if parameter.prior is not None
    }


def _draw(parameter: Float | Int | Categorical, prior: Near | Weights, random: np.random.Generator) -> Any:
    if isinstance(parameter, Categorical):
        assert isinstance(prior, Weights)
        shares = np.array(prior.weights) / sum(prior.weights)
        return parameter.values[int(random.choice(len(shares), p=shares))]
    assert isinstance(prior, Near)
    distribution = parameter.distribution()
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    place = random.normal(place_of(distribution, prior.mean), share_of(distribution, prior.spread))
    return value_at(distribution, reflected(float(place)))
