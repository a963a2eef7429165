"""The samplers: name -> factory, and the wrapper that seeds each trial separately and redraws duplicates.

Every draw comes from a new sampler, seeded from (study seed, trial number, attempt). A resumed study therefore does not
repeat trials, as it would with one seed, and draws do not depend on the process that asks.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import warnings
from collections.abc import Callable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from hpo.core.errors import MissingExtraError
from hpo.core.seeds import derived_seed
from hpo.search import priors
from hpo.search.bounded_tpe import BoundedTpe
from hpo.search.cross_entropy import CrossEntropySampler
from hpo.search.kept_trials import ByParams, ended_trials

if TYPE_CHECKING:
    from hpo.space.search_space import SearchSpace

SamplerFactory = Callable[..., BaseSampler]

MAX_REDRAWS = 10

DRAWN_BY = "hpo:drawn_by"
"""System attribute of a trial whose hyperparameters a sampler drew: `RANDOM` or the sampler's name."""
RANDOM = "random"
"""Drawn at random, independently of all other trials: by the random sampler, or before another one has a model."""
PRIOR = "a prior"
"""Drawn from the priors of the space: not as random trials are drawn, so that it does not tell what those would bring.
"""


class ReplayedCmaEs(optuna.samplers.CmaEsSampler):
    """CMA-ES that rebuilds its optimizer from the values of the trials, generation by generation.

    Optuna's own sampler unpickles the optimizer from a trial's attribute: write access to the storage would be enough
    to run code here.
    """

    _completed: list[FrozenTrial]

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> None:
        self._completed = completed_trials

    def _init_optimizer(self, trans: Any, direction: optuna.study.StudyDirection) -> Any:
        optimizer = super()._init_optimizer(trans, direction)
        sign = 1 if direction == optuna.study.StudyDirection.MINIMIZE else -1
        while True:
            told = self._get_solution_trials(self._completed, optimizer.generation)[: optimizer.population_size]
            if len(told) < optimizer.population_size:
                return optimizer
            points = (
                np.array(trial.system_attrs["x_for_tell"]) if self._with_margin else trans.transform(trial.params)
                for trial in told
            )
            optimizer.tell([(point, sign * (trial.value or 0.0)) for point, trial in zip(points, told, strict=True)])


SAMPLERS: dict[str, SamplerFactory] = {
    "tpe": BoundedTpe,
    "random": optuna.samplers.RandomSampler,
    "qmc": optuna.samplers.QMCSampler,
    # The points of the grid are planned as waiting trials; trials beyond the grid are drawn at random.
    "grid": optuna.samplers.RandomSampler,
    "gp": optuna.samplers.GPSampler,
    "cmaes": ReplayedCmaEs,
    "cross_entropy": CrossEntropySampler,
    "auto": CrossEntropySampler,  # where `hpo.search.auto` chooses no other
}

# Samplers of one sequence for the whole study: seeded with the study's seed, with the position in the storage.
ONE_SEED_PER_STUDY = ("qmc", "QMCSampler", "BruteForceSampler")


def factory(name: str) -> SamplerFactory | None:
    """Return the sampler called `name`: a key of `SAMPLERS` or any class of `optuna.samplers`."""
    name = {"CmaEsSampler": "cmaes", "TPESampler": "tpe"}.get(name, name)
    if name in SAMPLERS:
        return SAMPLERS[name]
    found = getattr(optuna.samplers, name, None)
    is_sampler = inspect.isclass(found) and issubclass(found, BaseSampler) and not inspect.isabstract(found)
    return found if is_sampler else None


def names() -> list[str]:
    """Return every name that `factory` knows."""
    return [*SAMPLERS, *(name for name in dir(optuna.samplers) if factory(name) is not None)]


def make(name: str, arguments: Mapping[str, Any], seed: int = 0) -> BaseSampler:
    """Build a sampler, seeded if it takes a seed and the arguments name none."""
    build = factory(name)
    if build is None:
        raise ValueError(f"no sampler is called {name!r}; one of {', '.join(SAMPLERS)}, or a class of optuna.samplers")
    if build is optuna.samplers.GridSampler:  # it can visit a point twice, and never retries one that failed
        raise ValueError("GridSampler is not used here; write grid, and the values in the space")
    if build is ReplayedCmaEs and importlib.util.find_spec("cmaes") is None:
        raise MissingExtraError(f"The sampler {name}", "samplers")  # Optuna would raise it during a trial
    takes_seed = "seed" in inspect.signature(build).parameters
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # the user has named it
        return build(**({"seed": seed} if takes_seed else {}) | dict(arguments))


def problem(name: str, arguments: Mapping[str, Any], space: SearchSpace) -> str | None:
    """Return why a sampler cannot draw from a space, tested by two draws in memory; None if it can."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # the real draws give the same warnings
    study = optuna.create_study(sampler=TrialSeededSampler(name, arguments, space, 0))
    try:
        for value in range(2):
            trial = study.ask()
            space.suggest(trial)
            study.tell(trial, value)
    except Exception as error:  # each sampler raises its own types
        return f"{name} cannot draw from this space ({error})"
    finally:
        optuna.logging.set_verbosity(verbosity)
    return None


class TrialSeededSampler(BaseSampler):
    """Draws all parameters of a trial together, from a sampler seeded for that trial.

    A proposal equal to an earlier trial is drawn again, at most `MAX_REDRAWS` times. A duplicate that remains is not
    trained; it is told the value of the earlier trial.

    Args:
        name: A key of `SAMPLERS` or a class of `optuna.samplers`.
        arguments: Its arguments.
        space: The search space; its conditions decide which parameters are active.
        seed: The study's seed.
    """

    def __init__(self, name: str, arguments: Mapping[str, Any], space: SearchSpace, seed: int) -> None:
        self.name, self.arguments, self.space, self.seed = name, dict(arguments), space, seed

    def _fresh(self, number: int, attempt: int) -> BaseSampler:
        trial_seed = derived_seed(self.seed, number, "sampler", attempt)
        if self.name not in ONE_SEED_PER_STUDY:
            return make(self.name, self.arguments, trial_seed)
        # Parameters outside the sequence, such as conditional ones, are drawn separately for each trial.
        independent = (
            {"independent_sampler": optuna.samplers.RandomSampler(trial_seed)} if "Brute" not in self.name else {}
        )
        return make(self.name, independent | self.arguments, self.seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the whole space with conditional parameters, which `sample_relative` draws too."""
        return self.space.distributions()

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw a proposal; if another trial has the same parameters, draw again at most `MAX_REDRAWS` times."""
        ended, others = ended_trials(study, ByParams)
        drawn = [other.params for other in others if other.number != trial.number and other.params]
        params: dict[str, Any] = {}
        expected: Mapping[str, Any] = {}
        for attempt in range(1 + MAX_REDRAWS):
            expected = self._from_prior(study, trial.number, attempt)
            params = self._draw(study, trial, attempt, expected)
            if params not in drawn and not ended.alike(params):
                break
        drawn_by = PRIOR if expected else RANDOM if self._is_random(study) else self.name
        study._storage.set_trial_system_attr(trial._trial_id, DRAWN_BY, drawn_by)
        return params

    def _is_random(self, study: optuna.Study) -> bool:
        """Return whether a draw certainly depends on no other trial.

        Optuna's samplers with a model draw at random until `n_startup_trials` have ended. TPE counts completed and
        pruned trials, the others completed ones only.
        """
        sampler = make(self.name, self.arguments)
        if isinstance(sampler, optuna.samplers.RandomSampler):
            return True
        needed = getattr(sampler, "_n_startup_trials", 0)
        trials = study._get_trials(deepcopy=False, use_cache=True)
        ended = (other for other in trials if other.state in (TrialState.COMPLETE, TrialState.PRUNED))
        return sum(1 for _ in islice(ended, needed)) < needed

    def _draw(
        self, study: optuna.Study, trial: FrozenTrial, attempt: int, expected: Mapping[str, Any]
    ) -> dict[str, Any]:
        sampler = self._fresh(trial.number, attempt)
        sampler.before_trial(study, trial)
        joint = sampler.infer_relative_search_space(study, trial)
        relative = {**sampler.sample_relative(study, trial, joint), **expected}
        params: dict[str, Any] = {}
        trial = copy.copy(trial)
        for name, distribution in self.space.distributions().items():
            if not self.space.active(name, params):
                continue
            if name in relative:
                params[name] = relative[name]
            elif distribution.single():
                params[name] = self.space.only_value(name)
            else:
                params[name] = sampler.sample_independent(study, trial, name, distribution)
            trial.params, trial.distributions = params, {**trial.distributions, name: distribution}
        return params

    def _from_prior(self, study: optuna.Study, number: int, attempt: int) -> Mapping[str, Any]:
        """Return the parameters that a trial has from the space's priors; none if it is not drawn from them."""
        if all(parameter.prior is None for parameter in self.space.parameters.values()):
            return {}  # without counting the trials, which may be many
        scored = sum(trial.state == TrialState.COMPLETE for trial in study._get_trials(deepcopy=False, use_cache=True))
        if not priors.draws_from_prior(self.space, number, scored):
            return {}
        return priors.draw(self.space, derived_seed(self.seed, number, "prior", attempt))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw a parameter that the objective suggests and the space does not have."""
        seed = derived_seed(self.seed, trial.number, param_name)
        return optuna.samplers.RandomSampler(seed).sample_independent(study, trial, param_name, param_distribution)
