"""Trials of a user's own: checked against a study's space, and put into its storage to be run with the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from hpo.config.study_spec import StudySpec
from hpo.core.errors import ConfigError, Problem, StudyError, nearest
from hpo.recipe.hyperparameters import HYPERPARAMETERS, defaults
from hpo.search.trial_marks import ADDED
from hpo.space.parameters import Categorical, Float, Int, Parameter
from hpo.space.search_space import Params, SearchSpace
from hpo.storage.trial_locks import starting
from hpo.storage.trial_writers import writer_of


@dataclass(frozen=True)
class Added:
    """A trial that was added.

    Attributes:
        number: Its number.
        params: What the user gave.
        drawn: The parameters that the sampler draws.
        notes: What the user should know, a sentence each.
    """

    number: int
    params: Mapping[str, Any]
    drawn: tuple[str, ...]
    notes: tuple[str, ...]


def add(study: StudySpec, opened: optuna.Study, url: str, given: Mapping[str, Any]) -> Added:
    """Put a trial into a study; the next run of the study, or the one under way, runs it.

    Args:
        study: The study as it is stored.
        opened: The study, opened for writing.
        url: URL of its storage.
        given: Name -> value. The sampler draws the parameters that are left out.

    Raises:
        ConfigError: Names or values do not fit the space; it lists all problems.
        StudyError: A trial of the study has these parameters already.
    """
    params, notes = checked(study, given)
    with starting(url, study.config.name):
        rows = opened.get_trials(deepcopy=False)
        drawn = _drawn(study.space, params)
        if not drawn:
            _refuse_duplicate(rows, params, study.config.name)
        _write(opened._storage, opened._study_id, params)
    return Added(len(rows), params, drawn, tuple(notes))


def _write(storage: BaseStorage, study_id: int, params: Params) -> None:
    row = optuna.create_trial(state=TrialState.WAITING, user_attrs={ADDED: True}, system_attrs={"fixed_params": params})
    writer_of(storage).add(study_id, [row])


def _drawn(space: SearchSpace, params: Params) -> tuple[str, ...]:
    """Return the parameters that have to be drawn; those whose condition depends on a drawn one are among them."""
    missing = [name for name in space.parameters if name not in params]
    return tuple(
        name
        for name in missing
        if space.active(name, params) or any(other in missing for other in space.parameters[name].when)
    )


def _refuse_duplicate(rows: list[FrozenTrial], params: Params, name: str) -> None:
    for row in rows:
        if row.state != TrialState.FAIL and {**row.system_attrs.get("fixed_params", {}), **row.params} == params:
            raise StudyError(
                f"trial {row.number} of {name!r} has these parameters already ({row.state.name.lower()}): nothing is "
                f"added. hpo confirm {name} trains the best configurations again with fresh seeds"
            )


# ---------------------------------------------------------------- checking


def checked(study: StudySpec, given: Mapping[str, Any]) -> tuple[Params, list[str]]:
    """Return parameters as the study's space has them, and a sentence for each that is outside its range.

    Raises:
        ConfigError: Names or values do not fit the space; it lists all problems.
    """
    params: Params = {}
    problems: dict[str, str] = {}
    notes = []
    for name, value in given.items():
        if message := _name_problem(study, name, value) or _value_problem(study, name, value):
            problems[name] = message
        elif name in study.space.parameters:
            parameter = study.space.parameters[name]
            params[name] = float(value) if isinstance(parameter, Float) else value
            if (outside := _outside(parameter, value)) is not None:
                notes.append(f"{name} = {value} is outside what is searched, {outside}: it is run as given")
    for name in params:
        if message := _condition_problem(study.space, name, params):
            problems[name] = message
    if problems:
        raise ConfigError("hpo add", [Problem((name,), message) for name, message in problems.items()])
    return params, notes


def _name_problem(study: StudySpec, name: str, value: Any) -> str | None:
    """Return why a name, or a value of a fixed parameter, is not one of the study."""
    space, own = study.space, study.config.objective is not None
    if name in space.parameters:
        return None
    if name in space.fixed:
        fixed = space.fixed[name]
        return None if value == fixed else f"is {fixed!r} in every trial of this study; search it in a new study"
    if not own and name in HYPERPARAMETERS:
        default = defaults(space.names)[name]
        return f"is not searched in this study, whose trials have the default, {default!r}; search it in a new study"
    return f"is not a parameter of this study{nearest(name, space.parameters)}"


def _value_problem(study: StudySpec, name: str, value: Any) -> str | None:
    parameter = study.space.parameters.get(name)
    if parameter is None:
        return None
    known = HYPERPARAMETERS.get(name) if study.config.objective is None else None
    if known is not None and (wrong := known.problem(value)):
        return wrong
    if isinstance(parameter, Categorical):
        # To Optuna a choice is its position in the list.
        choices = ", ".join(map(repr, parameter.values))
        return None if value in parameter.values else f"{value!r} is not one of its choices, {choices}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"{value!r} is not a number"
    if isinstance(parameter, Int) and not isinstance(value, int):
        return f"{value!r} is not a whole number"
    if parameter.log and value <= 0:
        return f"{value!r} must be above 0, as its scale is logarithmic"
    if name == "lora_rank" and value > parameter.high:
        return f"{value!r} is above {parameter.high}, the largest rank for which this study's adapters have room"
    return None


def _outside(parameter: Parameter, value: Any) -> str | None:
    """Return a range that does not contain a value, in words; None if it does."""
    if isinstance(parameter, Categorical) or parameter.low <= value <= parameter.high:
        return None
    return f"{parameter.low:g} to {parameter.high:g}"


def _condition_problem(space: SearchSpace, name: str, params: Params) -> str | None:
    """Return why the trial would not read a parameter."""
    if space.active(name, params):
        return None
    when = space.parameters[name].when
    wanted = ", ".join(f"{other}={value if not isinstance(value, list) else value[0]}" for other, value in when.items())
    return f"is read only on a condition that these values do not meet; give {wanted} too, or leave it out"
