"""The samplers: name -> factory, and the wrapper that seeds each trial on its own and redraws duplicates.

Every draw comes from a fresh sampler, seeded from (study seed, trial number, attempt), so that a resumed study
neither repeats its trials (as one seed for all would) nor depends on which process asks.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from hpo.core.errors import MissingExtraError
from hpo.core.seeds import derived_seed

if TYPE_CHECKING:
    from hpo.space.search_space import SearchSpace

SamplerFactory = Callable[..., BaseSampler]

MAX_REDRAWS = 10


class ReplayedCmaEs(optuna.samplers.CmaEsSampler):
    """CMA-ES that tells its optimizer every generation again from the trials' values.

    Optuna's own unpickles the optimizer from an attribute of a trial: whoever writes to the storage could run code.
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
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "qmc": optuna.samplers.QMCSampler,
    # The points are planned as waiting trials; what is left to draw are trials beyond the grid.
    "grid": optuna.samplers.RandomSampler,
    "gp": optuna.samplers.GPSampler,
    "cmaes": ReplayedCmaEs,
}

# A quasi-random sequence is one sequence: its seed is the study's, its position is kept in the storage.
ONE_SEED_A_STUDY = ("qmc", "QMCSampler", "BruteForceSampler")


def factory(name: str) -> SamplerFactory | None:
    """Return the sampler called `name`: a key of `SAMPLERS` or any class of `optuna.samplers`."""
    name = {"CmaEsSampler": "cmaes"}.get(name, name)
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
    if build is optuna.samplers.GridSampler:  # it can visit a point twice, and never one again that failed
        raise ValueError("GridSampler is not used here; write grid, and the values in the space")
    if build is ReplayedCmaEs and importlib.util.find_spec("cmaes") is None:
        raise MissingExtraError(f"The sampler {name}", "samplers")  # Optuna would say so in the middle of a trial
    takes_seed = "seed" in inspect.signature(build).parameters
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # it was asked for by name
        return build(**({"seed": seed} if takes_seed else {}) | dict(arguments))


def problem(name: str, arguments: Mapping[str, Any], space: SearchSpace) -> str | None:
    """Return why a sampler cannot draw from a space, found out by two draws in memory."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what is said of real draws is said when they are made
    study = optuna.create_study(sampler=TrialSeededSampler(name, arguments, space, 0))
    try:
        for value in range(2):
            trial = study.ask()
            space.suggest(trial)
            study.tell(trial, value)
    except Exception as error:  # each sampler raises its own kinds
        return f"{name} cannot draw from this space ({error})"
    finally:
        optuna.logging.set_verbosity(verbosity)
    return None


class TrialSeededSampler(BaseSampler):
    """Draws all parameters of a trial at once, from a sampler seeded for that trial.

    A proposal equal to an earlier trial's is drawn again, `MAX_REDRAWS` times at most. The runner tells a
    duplicate that is left the earlier value, untrained.

    Args:
        name: A key of `SAMPLERS` or a class of `optuna.samplers`.
        arguments: Passed to it.
        space: The search space; needed to know which parameters a condition makes active.
        seed: The study's seed.
    """

    def __init__(self, name: str, arguments: Mapping[str, Any], space: SearchSpace, seed: int) -> None:
        self.name, self.arguments, self.space, self.seed = name, dict(arguments), space, seed

    def _fresh(self, number: int, attempt: int) -> BaseSampler:
        of_trial = derived_seed(self.seed, number, "sampler", attempt)
        if self.name not in ONE_SEED_A_STUDY:
            return make(self.name, self.arguments, of_trial)
        # What is not part of the sequence, such as a conditional parameter, is drawn for each trial on its own.
        beside = {"independent_sampler": optuna.samplers.RandomSampler(of_trial)} if "Brute" not in self.name else {}
        return make(self.name, beside | self.arguments, self.seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the whole space, conditional parameters too: this sampler draws them together."""
        return self.space.distributions()

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw a proposal that no earlier trial has, if `MAX_REDRAWS` redraws find one."""
        earlier = study._get_trials(deepcopy=False, use_cache=True)  # one read a trial: the sampler's own
        seen = [other.params for other in earlier if other.number != trial.number and other.params]
        params: dict[str, Any] = {}
        for attempt in range(1 + MAX_REDRAWS):
            params = self._draw(study, trial, attempt)
            if params not in seen:
                break
        return params

    def _draw(self, study: optuna.Study, trial: FrozenTrial, attempt: int) -> dict[str, Any]:
        sampler = self._fresh(trial.number, attempt)
        sampler.before_trial(study, trial)
        joint = sampler.infer_relative_search_space(study, trial)
        relative = sampler.sample_relative(study, trial, joint)
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

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one parameter that is not in the space (an objective may suggest more by itself)."""
        seed = derived_seed(self.seed, trial.number, param_name)
        return optuna.samplers.RandomSampler(seed).sample_independent(study, trial, param_name, param_distribution)
