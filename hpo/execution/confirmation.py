"""A confirmation: the best configurations of a study and its published default, trained again with fresh seeds.

It is a study of its own, `<study>.confirm`, in the same storage. Each (configuration, repetition) is one trial of it,
so that kills, checkpoints and several processes are those of any study. Repetition i of every configuration has the
same seed: it starts from the same head and sees the rows in the same order, so that differences are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from hpo.config.schema import NAME
from hpo.config.study_spec import StudySpec
from hpo.core.errors import StudyError
from hpo.core.events import Observer
from hpo.core.trainer import TrialArray
from hpo.execution.run_study import Finished, choose_slots, keep_frozen_states, run_trials
from hpo.execution.study_setup import SOURCE, folder_of, open_study, resumed, store_config, stored_facts
from hpo.execution.trial_arrays import open_array
from hpo.search.trial_seed import SEED
from hpo.storage import backends
from hpo.storage.retry import Retry
from hpo.storage.snapshot import Results
from hpo.storage.trial_locks import starting
from hpo.storage.trial_writers import writer_of
from hpo.storage.urls import redacted

if TYPE_CHECKING:
    from hpo.finetune.scorable import ScorableArray

SUFFIX = ".confirm"
DEFAULT = "the published default"
REPEATS, REPETITION = "repeats", "repetition"
"""User attributes of a trial of a confirmation: the name of its configuration, and its repetition, from 0 on."""

QUESTION = ("task", "metric", "data", "weights", SOURCE)
"""Facts of the study that a confirmation needs unchanged. Versions and devices may differ: all of its runs share them.
"""


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


def original_of(study: str) -> str | None:
    """Return the name of the study that a confirmation is of; None for the name of any other study."""
    return study.removesuffix(SUFFIX) if study.endswith(SUFFIX) else None


def refuse(study: str) -> None:
    """Refuse the name of a confirmation, which `hpo confirm` runs.

    Raises:
        StudyError: It is one.
    """
    if (original := original_of(study)) is not None:
        raise StudyError(f"study {study!r} is the confirmation of {original!r}: hpo confirm {original} goes on with it")


def name_of(study: str) -> str:
    """Return the name of a study's confirmation.

    Raises:
        StudyError: The study is a confirmation itself, or its name leaves no room.
    """
    refuse(study)
    if not NAME.fullmatch(study + SUFFIX):
        raise StudyError(
            f"study {study!r} cannot be confirmed: {study + SUFFIX!r}, which the confirmation is called, has "
            f"{len(study + SUFFIX)} characters, and a study's name has at most 100; run it under a shorter name"
        )
    return study + SUFFIX


# ---------------------------------------------------------------- running


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
    array = open_array(study)
    if study.config.metric is None and "metric" in array.facts:
        study = replace(study, config=study.config.model_copy(update={"metric": array.facts["metric"]}))
    storage = backends.connect(url)
    retry = Retry(url, waits=watch.note)
    retry(lambda: _refuse_changes(study, storage, array))
    opened, confirming = retry(lambda: _planned(study, chosen, seeds, url, storage, array, name))
    budget, folder = confirming.config.trials or 0, folder_of(name)
    if study.config.objective is None:
        keep_frozen_states(opened, cast("ScorableArray", array), train=True)
    if study.config.slots == "auto":
        choose_slots(opened, cast("ScorableArray", array), budget)
    runner = run_trials(opened, confirming, array, budget, watch, url)
    rows = opened.get_trials(deepcopy=False)
    runs = [[_row(rows, each, seed) for seed in range(seeds)] for each in chosen]
    done = Finished(opened, array, runner.stopped, runner.failed, folder)
    return Confirmed(done, confirming, cast("list[list[FrozenTrial]]", runs))


def _refuse_changes(study: StudySpec, storage: BaseStorage, array: TrialArray) -> None:
    """Refuse to confirm a study whose file or data has changed since it ran."""
    stored = stored_facts(study.config.name, storage)
    array.resume_with(stored)
    now = {name: value for name, value in array.facts.items() if name in QUESTION}
    resumed(study, storage, {**stored, **now})


def _planned(
    study: StudySpec,
    chosen: Sequence[Configuration],
    seeds: int,
    url: str,
    storage: BaseStorage,
    array: TrialArray,
    name: str,
) -> tuple[optuna.Study, StudySpec]:
    """Create the confirmation, or open it, and add the runs that it lacks; any number of processes may do so at once.

    Returns:
        The confirmation, and its study file: as the study's, with all runs as its trials, none of which is pruned.
    """
    with starting(url, name):
        array.resume_with(stored_facts(name, storage))
        there: list[FrozenTrial] = []
        with suppress(KeyError):
            there = optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
        wanted = [(each, seed) for seed in range(seeds) for each in chosen]
        missing = [_planned_row(*pair) for pair in wanted if _row(there, *pair) is None]
        confirming = _file(study, name, len(there) + len(missing))
        try:
            opened = open_study(confirming, storage, array.facts)
        except StudyError as error:
            changed, delete = str(error).partition("\nChange")[0], f"--study-name {name} --storage {redacted(url)}"
            raise StudyError(
                f"{changed}\nA confirmation goes on with the versions and the device with which it was begun. Change "
                f"them back, or delete it to begin anew: optuna delete-study {delete}"
            ) from None
        if missing:
            writer_of(storage).add(opened._study_id, missing)
        store_config(opened, confirming)
    return opened, confirming


def _file(study: StudySpec, name: str, trials: int) -> StudySpec:
    changes = {
        "name": name,
        "sampler": "random",  # it draws nothing: all parameters are planned
        "pruner": "none",
        "prune_on": None,
        "limits": None,  # a configuration is confirmed whatever a run of it measures
        "second_metric": None,
        "round_size": None,
        "baseline": False,
        "trials": trials,
        "timeout": None,
        "keep_best": trials,
    }
    return replace(study, config=study.config.model_copy(update=changes))


def _planned_row(configuration: Configuration, repetition: int) -> FrozenTrial:
    return optuna.create_trial(
        state=TrialState.WAITING,
        user_attrs={REPEATS: configuration.name, REPETITION: repetition},
        system_attrs={"fixed_params": dict(configuration.params), SEED: f"confirm {repetition}"},
    )


def _row(rows: Sequence[FrozenTrial], configuration: Configuration, repetition: int) -> FrozenTrial | None:
    """Return the trial that trains a configuration with the seed of a repetition, if there is one."""
    for row in rows:
        params = {**row.system_attrs.get("fixed_params", {}), **row.params}
        if row.user_attrs.get(REPETITION) == repetition and params == configuration.params:
            return row
    return None
