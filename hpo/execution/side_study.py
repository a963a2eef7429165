"""A study beside a study: trials that answer a question about it, and that are not trials of it.

A confirmation and an audit are such studies, `<study>.confirm` and `<study>.audit` in the same storage. All of their
parameters are planned, and none of their trials is pruned. Kills, checkpoints and several processes are those of any
study.
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
from hpo.storage.trial_locks import starting
from hpo.storage.trial_writers import writer_of
from hpo.storage.urls import redacted

if TYPE_CHECKING:
    from hpo.finetune.scorable import ScorableArray

KINDS = {"confirm": "confirmation", "audit": "audit"}
"""Command -> what it runs; its study has the name of the command after a dot."""

QUESTION = ("task", "metric", "data", "weights", SOURCE)
"""Facts of the study that must not have changed. Versions and devices may: all runs of a side study share them."""


@dataclass(frozen=True)
class Ran:
    """A side study after its run.

    Attributes:
        done: The run.
        study: Its study file.
        trials: Its trials, in the order in which they were asked for.
    """

    done: Finished
    study: StudySpec
    trials: Sequence[FrozenTrial]


# ---------------------------------------------------------------- names


def kind_of(study: str) -> tuple[str, str] | None:
    """Return (name of the study that a side study is beside, its command); None for the name of any other study."""
    name, _, command = study.rpartition(".")
    return (name, command) if name and command in KINDS else None


def refuse(study: str) -> None:
    """Refuse the name of a side study, which a command of its own runs.

    Raises:
        StudyError: It is one.
    """
    if (found := kind_of(study)) is not None:
        original, command = found
        kind = KINDS[command]
        raise StudyError(f"study {study!r} is the {kind} of {original!r}: hpo {command} {original} goes on with it")


def name_of(study: str, command: str) -> str:
    """Return the name of a side study.

    Raises:
        StudyError: The study is a side study itself, or its name leaves no room.
    """
    refuse(study)
    name = f"{study}.{command}"
    if not NAME.fullmatch(name):
        raise StudyError(
            f"study {study!r} can have no {KINDS[command]}: {name!r}, which that is called, has {len(name)} "
            "characters, and a study's name has at most 100; run it under a shorter name"
        )
    return name


# ---------------------------------------------------------------- running


def planned(params: Mapping[str, Any], seed: str | int, attrs: Mapping[str, Any]) -> FrozenTrial:
    """Return a trial of a side study.

    Args:
        params: Its searched hyperparameters.
        seed: What its seed derives from, see `hpo.search.trial_seed`.
        attrs: Its user attributes.
    """
    system = {"fixed_params": dict(params), SEED: seed}
    return optuna.create_trial(state=TrialState.WAITING, user_attrs=dict(attrs), system_attrs=system)


def run(
    study: StudySpec,
    wanted: Sequence[FrozenTrial],
    url: str,
    watch: Observer,
    name: str,
    *,
    keep_all: bool = False,
) -> Ran:
    """Run trials beside a study, as far as that has not been done.

    Args:
        study: The file of the study; its data is the same if its rows are.
        wanted: The trials, as `planned` returns them; no two have the same parameters and the same seed.
        url: URL of the storage.
        watch: Told of all events.
        name: Name of the side study.
        keep_all: Whether the weights of all trials are kept; if not, those of the best one are.

    Raises:
        HpoError: The data, the model or the objective is not that of the study; nothing has been written.
    """
    array = open_array(study)
    if study.config.metric is None and "metric" in array.facts:
        study = replace(study, config=study.config.model_copy(update={"metric": array.facts["metric"]}))
    storage = backends.connect(url)
    retry = Retry(url, waits=watch.note)
    retry(lambda: _refuse_changes(study, storage, array))
    opened, beside = retry(lambda: _opened(study, wanted, url, storage, array, name, keep_all))
    budget = beside.config.trials or 0
    if study.config.objective is None:
        keep_frozen_states(opened, cast("ScorableArray", array), train=True)
    if study.config.slots == "auto":
        choose_slots(opened, cast("ScorableArray", array), budget)
    runner = run_trials(opened, beside, array, budget, watch, url)
    rows = opened.get_trials(deepcopy=False)
    trials = cast("list[FrozenTrial]", [_there(rows, each) for each in wanted])
    return Ran(Finished(opened, array, runner.stopped, runner.failed, folder_of(name)), beside, trials)


def _refuse_changes(study: StudySpec, storage: BaseStorage, array: TrialArray) -> None:
    """Refuse to go on with a study whose file or data has changed since it ran."""
    stored = stored_facts(study.config.name, storage)
    array.resume_with(stored)
    now = {name: value for name, value in array.facts.items() if name in QUESTION}
    resumed(study, storage, {**stored, **now})


def _opened(
    study: StudySpec,
    wanted: Sequence[FrozenTrial],
    url: str,
    storage: BaseStorage,
    array: TrialArray,
    name: str,
    keep_all: bool,
) -> tuple[optuna.Study, StudySpec]:
    """Create the side study, or open it, and add the trials that it lacks; any number of processes may do so at once.

    Returns:
        The side study, and its study file.
    """
    with starting(url, name):
        array.resume_with(stored_facts(name, storage))
        there: list[FrozenTrial] = []
        with suppress(KeyError):
            there = optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
        missing = [each for each in wanted if _there(there, each) is None]
        beside = _file(study, name, len(there) + len(missing), keep_all)
        try:
            opened = open_study(beside, storage, array.facts)
        except StudyError as error:
            changed, delete = str(error).partition("\nChange")[0], f"--study-name {name} --storage {redacted(url)}"
            raise StudyError(
                f"{changed}\nIt goes on with the versions and the device with which it was begun. Change them back, or "
                f"delete it to begin anew: optuna delete-study {delete}"
            ) from None
        if missing:
            writer_of(storage).add(opened._study_id, missing)
        store_config(opened, beside)
    return opened, beside


def _file(study: StudySpec, name: str, trials: int, keep_all: bool) -> StudySpec:
    changes = {
        "name": name,
        "sampler": "random",  # it draws nothing: all parameters are planned
        "pruner": "none",
        "prune_on": None,
        "limits": None,  # what is trained again is so whatever a run of it measures
        "second_metric": None,
        "warm_start": None,
        "round_size": None,
        "baseline": False,
        "trials": trials,
        "timeout": None,
        "stop": None,
        "keep_best": trials if keep_all else 1,
    }
    return replace(study, config=study.config.model_copy(update=changes))


def _there(rows: Sequence[FrozenTrial], wanted: FrozenTrial) -> FrozenTrial | None:
    """Return the trial that trains the same parameters with the same seed, if there is one."""
    params, seed = wanted.system_attrs["fixed_params"], wanted.system_attrs[SEED]
    for row in rows:
        if {**row.system_attrs.get("fixed_params", {}), **row.params} == params and row.system_attrs.get(SEED) == seed:
            return row
    return None
