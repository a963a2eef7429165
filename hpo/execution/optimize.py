"""`hpo.optimize`: run a study of a custom objective from Python."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Never

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from hpo.config import study_spec
from hpo.core.errors import ConfigError, Problem
from hpo.core.events import Observer, Silent
from hpo.core.interrupts import StopRequest
from hpo.core.seeds import derived_seed
from hpo.core.trainer import Objective
from hpo.execution.custom_objective import refuse_unread_parameters
from hpo.execution.objective_source import source_digest
from hpo.execution.optuna_arguments import argument_problems, object_problems
from hpo.execution.processes import joined
from hpo.execution.run_study import open_planned, run_trials
from hpo.execution.runner import Runner
from hpo.execution.study_setup import DEFAULT_TRIALS, SOURCE, refuse_another_objective
from hpo.execution.trial_arrays import open_custom
from hpo.search import pruners, samplers
from hpo.search.plugins import name_and_arguments
from hpo.space.search_space import SearchSpace
from hpo.storage import backends
from hpo.storage.snapshot import read

Named = str | Mapping[str, Any]  # a name, or a mapping of `name` and arguments
_WITH_SPACE = ("patience", "prune_on", "limits", "second_metric", "stop")
_NEEDS_SPACE = "needs a space; without one, Optuna runs trials"


def optimize(
    objective: Objective | Callable[[optuna.Trial], Any],
    space: SearchSpace | Mapping[str, Any] | str | None = None,
    *,
    direction: Literal["maximize", "minimize"] = "maximize",
    trials: int | None = None,
    name: str = "study",
    storage: str | None = None,
    sampler: Named = "tpe",
    pruner: Named = "median",
    prune_on: Named | None = None,
    limits: Mapping[str, float | Mapping[str, float]] | None = None,
    second_metric: Named | None = None,
    seed: int = 0,
    timeout: float | None = None,
    stop: Mapping[str, Any] | None = None,
    patience: int | None = None,
    round_size: int | None = None,
    max_consecutive_failures: int = 3,
    same_objective: bool = False,
    watch: Observer | None = None,
    **others: Never,
) -> optuna.Study:
    """Optimise a custom objective.

    With a `space`, the objective takes `params` (name -> value). It either yields scores, of which the best counts and
    after each of which the trial may be pruned, or returns one score. With `space=None` it is an unchanged Optuna
    objective: it takes an `optuna.Trial`, suggests parameters and prunes by itself.

    Args:
        objective: The function; its attribute `parameters`, if it has one, lists the names it reads.
        space: A search space, the mapping it is read from, or the name of a file in `search_spaces/`.
        direction: Which way is better.
        trials: Trials of the study in all; if None, every point of a grid, otherwise 20.
        name: The study's name.
        storage: URL of an Optuna storage, in which a study of that name is resumed; in memory if None.
        sampler: As in a study file.
        pruner: As in a study file; its steps are `Evaluation.at`, or else count the evaluations of a trial.
        prune_on: Metric of `Evaluation.metrics` that the pruner compares in place of the value, as in a study file;
            needs a space.
        limits: Metric of `Evaluation.metrics`, or `device_seconds` -> its limit, which the best trial has to meet, as
            in a study file, e.g. `{"latency_ms": {"most": 20}}`; needs a space.
        second_metric: Metric of `Evaluation.metrics`, or `device_seconds`, that forms a Pareto front with the value, as
            in a study file; needs a space.
        seed: Everything random in the search derives from it.
        timeout: Seconds after which running trials are put back.
        stop: What ends the study before its trials are used up, as in a study file (`device_hours`, `target`,
            `plateau`); needs a space.
        patience: Evaluations without a better one after which a trial ends; needs a space.
        round_size: Trials of a round, whose results do not depend on the speed of trials; no rounds if None.
        max_consecutive_failures: Failed trials in a row after which the study stops.
        same_objective: Resume a study although the objective was edited, renamed or moved since, which is refused
            otherwise: its trials would not compare. If its source cannot be read, only its name is compared.
        watch: Told of all events; without a space, of trials that end.
        **others: Refused; for an argument of Optuna's functions, the error says what to write instead.

    Returns:
        The Optuna study.

    Raises:
        HpoError: The space, sampler, pruner or storage is not usable.
    """
    _refuse_arguments(objective, sampler, pruner, others)
    settings = {
        "name": name,
        "objective": f"{objective.__module__}:{getattr(objective, '__qualname__', f'{type(objective).__name__}()')}",
        "direction": direction,
        "space": space.to_dict() if isinstance(space, SearchSpace) else space,
        "sampler": sampler if isinstance(sampler, str) else dict(sampler),
        "pruner": pruner if isinstance(pruner, str) else dict(pruner),
        "prune_on": dict(prune_on) if isinstance(prune_on, Mapping) else prune_on,
        "limits": {k: dict(v) if isinstance(v, Mapping) else v for k, v in limits.items()} if limits else None,
        "second_metric": dict(second_metric) if isinstance(second_metric, Mapping) else second_metric,
        "trials": trials,
        "seed": seed,
        "timeout": timeout,
        "stop": dict(stop) if isinstance(stop, Mapping) else stop,
        "patience": patience,
        "round_size": round_size,
        "max_consecutive_failures": max_consecutive_failures,
        "same_objective": same_objective,
    }
    if space is None:
        _refuse_without_space(settings)
        settings["space"] = {"suggested_by_the_objective": [0, 1]}  # required, and not read
    study = study_spec.build(settings, "optimize()", Path.cwd())
    opened_storage = optuna.storages.InMemoryStorage() if storage is None else backends.connect(storage)
    if space is None:
        return _run_by_optuna(objective, study, opened_storage, watch or Silent(), storage)
    refuse_unread_parameters(study.config, study.space, objective)
    array = open_custom(objective)
    opened, budget = open_planned(study, opened_storage, storage, array, watch)
    runner = run_trials(opened, study, array, budget, watch or Silent(), storage, register=True)
    _warn_of_trouble(runner, opened)
    return opened


def _refuse_arguments(objective: Any, sampler: Any, pruner: Any, others: Iterable[str]) -> None:
    if not callable(objective):
        raise ConfigError("optimize()", [Problem(("objective",), f"must be a function of params, not {objective!r}")])
    known = [name for name, entry in inspect.signature(optimize).parameters.items() if entry.kind != entry.VAR_KEYWORD]
    if wrong := argument_problems(others, known) + object_problems(sampler, pruner):
        raise ConfigError("optimize()", wrong)


def _refuse_without_space(settings: Mapping[str, Any]) -> None:
    wrong = [Problem((key,), _NEEDS_SPACE) for key in _WITH_SPACE if settings[key] is not None]
    if pruners.promotes(settings["pruner"]):
        wrong.append(Problem(("pruner", "type"), _NEEDS_SPACE))
    if wrong:
        raise ConfigError("optimize()", wrong)


def _warn_of_trouble(runner: Runner, opened: optuna.Study) -> None:
    """Warn the caller of `optimize` if the study stopped early, or no trial has completed or is within the limits."""
    rows = runner.study.get_trials(deepcopy=False)  # as this process knows them: the storage may be away by now
    if runner.stopped is not None:
        warnings.warn(runner.stopped, stacklevel=3)
    elif not any(row.state == TrialState.COMPLETE for row in rows):
        last = rows[-1].user_attrs
        why = ": ".join(str(last[name]) for name in ("reason", "detail") if name in last)
        warnings.warn(f"no trial of {opened.study_name} has completed; the last ended with {why}", stacklevel=3)
    elif rows and runner.rules.criteria.limits and (results := read(runner.study)).best is None:
        warnings.warn(results.why_no_best, stacklevel=3)


def _run_by_optuna(
    objective: Any, study: study_spec.StudySpec, storage: BaseStorage, watch: Observer, url: str | None
) -> optuna.Study:
    """Run an Optuna objective with `Study.optimize`, with the budget counted in trials and the failures bounded."""
    config = study.config
    opened = optuna.create_study(
        storage=storage,
        study_name=config.name,
        direction=study.direction,
        load_if_exists=True,
        pruner=pruners.make(*name_and_arguments(config.pruner)),
    )
    source = source_digest(objective)
    known = {"objective": config.objective} | ({} if source is None else {SOURCE: source})
    refuse_another_objective(opened, known, config.same_objective)
    before = opened.get_trials(deepcopy=False)
    # The number of trials is in the seed: with the same seed, a resumed study would draw its first trials again.
    opened.sampler = samplers.make(*name_and_arguments(config.sampler), derived_seed(config.seed, len(before)))
    failures, stop_request = 0, StopRequest()

    def ended(ran: optuna.Study, trial: FrozenTrial) -> None:
        nonlocal failures
        watch.ended(trial)
        failures = failures + 1 if trial.state == TrialState.FAIL else 0
        if failures >= config.max_consecutive_failures:
            warnings.warn(f"{failures} trials failed in a row; the study stops", stacklevel=2)
            ran.stop()
        if stop_request.is_set():
            ran.stop()

    budget = config.trials or DEFAULT_TRIALS
    watch.opened(config.name, "value", study.direction, budget, [row for row in before if row.state.is_finished()])
    try:
        left = max(0, budget - len(before))
        with joined(url, config.name, stop_request.set):
            opened.optimize(objective, left, config.timeout, catch=(Exception,), callbacks=[ended])
    finally:
        watch.closed()
    return opened
