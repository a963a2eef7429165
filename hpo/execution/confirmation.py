"""A confirmation: the best configurations of a study and its published default, trained again with fresh seeds.

It is a side study, `<study>.confirm`. Each (configuration, repetition) is one trial of it. Repetition i of every
configuration has the same seed: it starts from the same head and sees the rows in the same order, so that differences
are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from hpo.config.study_spec import StudySpec
from hpo.core.errors import StudyError
from hpo.core.events import Observer
from hpo.execution import side_study
from hpo.execution.run_study import Finished
from hpo.storage.snapshot import Results

COMMAND = "confirm"
DEFAULT = "the published default"
REPEATS, REPETITION = "repeats", "repetition"
"""User attributes of a trial of a confirmation: the name of its configuration, and its repetition, from 0 on."""


@dataclass(frozen=True)
class Configuration:
    """A configuration that is confirmed.

    Attributes:
        name: `trial 7`, or `the published default`.
        trial: Its trial in the search; None for a published default that the search did not run.
        params: Its searched hyperparameters.
        value: What the search gave it; None if it did not complete there.
    """

    name: str
    trial: int | None
    params: Mapping[str, Any]
    value: float | None


@dataclass(frozen=True)
class Confirmed:
    """A confirmation after its run.

    Attributes:
        done: The run of the study `<study>.confirm`.
        study: Its study file.
        runs: For each configuration its trials, one a repetition.
    """

    done: Finished
    study: StudySpec
    runs: Sequence[Sequence[FrozenTrial]]


def configurations(results: Results, study: StudySpec, top: int) -> list[Configuration]:
    """Return the `top` best configurations of a study, best first, and then its published default if it has one.

    Raises:
        StudyError: So many have not completed.
    """
    name = results.name
    if results.best is None:
        raise StudyError(f"nothing of {name!r} can be confirmed: {results.why_no_best}")
    default = _default(results, study)
    found = [] if default is None else [default]
    best: list[Configuration] = []
    for trial in results.ranked:
        if all(trial.params != other.params for other in (*found, *best)):
            best.append(Configuration(f"trial {trial.number}", trial.number, trial.params, trial.value))
    if len(best) < top:
        besides = "" if default is None else " besides the published default"
        least = f"write --top {len(best)}, or run more trials" if best else "run more trials"
        raise StudyError(
            f"--top {top}: study {name!r} has {len(best)} completed configuration{'s' * (len(best) != 1)}{besides}; "
            f"{least}: hpo run {name} --trials N"
        )
    return [*best[:top], *found]


def _default(results: Results, study: StudySpec) -> Configuration | None:
    trial = results.baseline
    if trial is None:
        return Configuration(DEFAULT, None, study.space.first_trial(), None) if study.space.baseline else None
    params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    return Configuration(DEFAULT, trial.number, params, trial.value if trial in results.complete else None)


def name_of(study: str) -> str:
    """Return the name of a study's confirmation.

    Raises:
        StudyError: The study is a side study itself, or its name leaves no room.
    """
    return side_study.name_of(study, COMMAND)


def run(
    study: StudySpec, chosen: Sequence[Configuration], seeds: int, url: str, watch: Observer, name: str
) -> Confirmed:
    """Train configurations again with fresh seeds, as far as that has not been done.

    Args:
        study: The file of the study that is confirmed; its data is the same if its rows are.
        chosen: The configurations.
        seeds: Repetitions of each.
        url: URL of the storage.
        watch: Told of all events.
        name: Name of the confirmation.

    Raises:
        HpoError: The data, the model or the objective is not that of the study; nothing has been written.
    """
    wanted = [_planned(each, seed) for seed in range(seeds) for each in chosen]
    ran = side_study.run(study, wanted, url, watch, name, keep_all=True)
    runs = [ran.trials[index :: len(chosen)] for index in range(len(chosen))]
    return Confirmed(ran.done, ran.study, runs)


def _planned(configuration: Configuration, repetition: int) -> FrozenTrial:
    attrs = {REPEATS: configuration.name, REPETITION: repetition}
    return side_study.planned(configuration.params, f"confirm {repetition}", attrs)
