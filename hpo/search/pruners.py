"""The pruners: name -> factory. A step is one example seen, so that trials of different batch sizes compare."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import optuna
from optuna.pruners import BasePruner

from hpo.search.halving import PromotionPruner, TwoRungHalving
from hpo.search.plugins import name_and_arguments

PrunerFactory = Callable[..., BasePruner]


def patient(
    wrapped: str | Mapping[str, Any] | None = None,
    patience: int = 2,
    min_delta: float = 0.0,
    segment: int = 1,
    horizon: int | None = None,
) -> BasePruner:
    """Prune after `patience` evaluations without improvement, if the wrapped pruner prunes too."""
    inner = None
    if wrapped is not None:
        name, arguments = name_and_arguments(wrapped)
        inner = make(name, arguments, segment, horizon)
        if isinstance(inner, PromotionPruner):
            raise ValueError("patient ends trials, and type: promotion pauses them: wrap another pruner")
    return optuna.pruners.PatientPruner(inner, patience, min_delta)


def asha(
    min_resource: str | int = "auto",
    reduction_factor: int = 4,
    min_early_stopping_rate: int = 0,
    bootstrap_count: int = 0,
    type: Literal["stopping", "promotion"] = "stopping",
) -> BasePruner:
    """Asynchronous successive halving (Li et al., 2020).

    Args:
        min_resource: As in Optuna's `SuccessiveHalvingPruner`, as the next three.
        reduction_factor: One trial in so many is promoted at a rung.
        min_early_stopping_rate: The lowest rung is at `min_resource` times `reduction_factor` to the power of this.
        bootstrap_count: No trial is promoted from a rung that at most so many have reached.
        type: A trial that is not promoted at its rung ends there (`stopping`), or pauses and goes on once it is among
            the best (`promotion`), as Syne Tune names them.
    """
    kinds = {"stopping": optuna.pruners.SuccessiveHalvingPruner, "promotion": PromotionPruner}
    if type not in kinds:
        raise ValueError(f"type must be {' or '.join(kinds)}, not {type!r}")
    return kinds[type](min_resource, reduction_factor, min_early_stopping_rate, bootstrap_count)


def promotes(setting: str | Mapping[str, Any]) -> bool:
    """Return whether the setting of a pruner asks for trials that pause at rungs, without rounds."""
    return name_and_arguments(setting)[1].get("type") == "promotion"


PRUNERS: dict[str, PrunerFactory] = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "asha": asha,
    "successive_halving": asha,
    "hyperband": optuna.pruners.HyperbandPruner,
    "patient": patient,
    "wilcoxon": optuna.pruners.WilcoxonPruner,
    "threshold": optuna.pruners.ThresholdPruner,
    "two_rungs": TwoRungHalving,
    "auto": TwoRungHalving,  # where `hpo.search.auto` chooses no other
}


def _defaults(name: str, segment: int, horizon: int | None) -> dict[str, Any]:
    """Return the arguments that a study file may leave out; resources are in steps, as they are reported."""
    defaults: dict[str, dict[str, Any]] = {
        "percentile": {"percentile": 25.0},
        "wilcoxon": {"p_threshold": 0.1},
        "patient": {"segment": segment, "horizon": horizon},
        "auto": {"segment": segment, "horizon": horizon},
        "two_rungs": {"segment": segment, "horizon": horizon},
        "asha": {"min_resource": segment},
        "successive_halving": {"min_resource": segment},
        "hyperband": {"min_resource": segment, "max_resource": horizon or "auto"},
    }
    return defaults.get(name, {})


def factory(name: str) -> PrunerFactory | None:
    """Return the pruner called `name`: a key of `PRUNERS` or any class of `optuna.pruners`."""
    if name in PRUNERS:
        return PRUNERS[name]
    found = getattr(optuna.pruners, name, None)
    if not inspect.isclass(found) or not issubclass(found, BasePruner) or inspect.isabstract(found):
        return None
    return found


def names() -> list[str]:
    """Return every name that `factory` knows."""
    return [*PRUNERS, *(name for name in dir(optuna.pruners) if factory(name) is not None)]


def make(name: str, arguments: Mapping[str, Any], segment: int = 1, horizon: int | None = None) -> BasePruner:
    """Build a pruner.

    Args:
        name: A key of `PRUNERS` or a class of `optuna.pruners`.
        arguments: Its arguments.
        segment: Steps between two reports; the smallest resource of a rung.
        horizon: Steps of the longest trial, if known.

    Raises:
        ValueError: No pruner has that name, or it does not take these arguments.
    """
    build = factory(name)
    if build is None:
        raise ValueError(f"no pruner is called {name!r}; one of {', '.join(PRUNERS)}, or a class of optuna.pruners")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # the user has named it
        try:
            return build(**(_defaults(name, segment, horizon) | dict(arguments)))
        except TypeError as error:
            raise ValueError(str(error)) from None
