"""Run a study file to its end: open the array and the study, and run the trials that have not ended."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import optuna
from optuna.storages import BaseStorage, get_storage

from hpo.config.study_spec import StudySpec
from hpo.core.errors import StudyError
from hpo.core.events import Observer, Silent
from hpo.core.trainer import TrialArray
from hpo.execution import earlier_studies, memory_use, model_costs
from hpo.execution.best_weights import Weights
from hpo.execution.checkpoint_store import Checkpoints
from hpo.execution.processes import joined
from hpo.execution.runner import Runner
from hpo.execution.study_setup import (
    as_chosen,
    folder_of,
    lacks_start,
    open_study,
    plan,
    planned_rows,
    resumed,
    store_config,
    stored_facts,
)
from hpo.execution.trial_arrays import open_array
from hpo.search import auto, pruners
from hpo.search.plugins import name_and_arguments
from hpo.search.stopping import Rules, StudyLimits
from hpo.search.trial_marks import is_added
from hpo.search.warm_start import stored_in
from hpo.storage import backends
from hpo.storage.retry import Retry
from hpo.storage.trial_locks import starting
from hpo.storage.urls import redacted

if TYPE_CHECKING:
    from hpo.finetune.scorable import ScorableArray
    from hpo.finetune.several_models import SeveralModels

log = logging.getLogger(__name__)

STALL_TIMEOUT = 1800.0  # seconds; a step of fine-tuning, or scoring the validation split, takes far less


@dataclass(frozen=True)
class Finished:
    """A study after its run.

    Attributes:
        study: The Optuna study.
        array: The array, still open, to score the test split with.
        stopped: Why the study stopped early, or None.
        failed: Whether it stopped because trials failed in a row.
        folder: Where its files are, `runs/<study>`.
    """

    study: optuna.Study
    array: TrialArray
    stopped: str | None
    failed: bool
    folder: Path


def run(
    study: StudySpec,
    url: str,
    watch: Observer | None = None,
    *,
    train: bool = True,
    array: TrialArray | None = None,
) -> Finished:
    """Run a study file to its end, or resume it.

    Args:
        study: The validated file.
        url: URL of the storage.
        watch: Told of all events.
        train: Whether to run the trials that have not ended; if not, the study is only opened.
        array: The array of a study of the same seed, which differs in how it searches only; None opens one.

    Raises:
        HpoError: The data, model, storage or study is not as the file says; nothing has been written.
    """
    backends.refuse(url)
    array = open_array(study) if array is None else array
    if study.config.metric is None and "metric" in array.facts:  # the task's default, known once the labels are read
        study = replace(study, config=study.config.model_copy(update={"metric": array.facts["metric"]}))
    if not (train or study.config.name in optuna.get_all_study_names(backends.look(url))):
        raise StudyError(
            f"study {study.config.name} is not in {redacted(url)} any more, where it has just been run: the storage "
            "was deleted or replaced. Put it back, and run the same command again to go on"
        )
    log.info("opening the study in %s", redacted(url))
    opened, budget = open_planned(study, backends.connect(url), url, array, watch)
    if study.config.objective is None:
        keep_frozen_states(opened, cast("ScorableArray", array), train)
    if not train:
        return Finished(opened, array, None, False, folder_of(study.config.name))
    measures_slots = study.config.slots == "auto"
    if measures_slots:
        choose_slots(opened, cast("ScorableArray", array), planned_rows(study)[1])
    tuning = None if study.config.objective is not None else cast("ScorableArray", array)
    if tuning is not None:
        memory_use.estimate(opened, tuning)
        if model_costs.asked(study):
            model_costs.provide(opened, study, cast("SeveralModels", array), url)
    began = time.monotonic()
    runner = run_trials(opened, study, array, budget, watch or Silent(), url)
    if tuning is not None:
        memory_use.keep_most_used(opened, tuning, time.monotonic() - began)
    if measures_slots and array.slots < opened.user_attrs.get("slots", 0):
        opened.set_user_attr("slots", array.slots)  # memory ran out
    return Finished(opened, array, runner.stopped, runner.failed, folder_of(study.config.name))


def keep_frozen_states(opened: optuna.Study, array: ScorableArray, train: bool) -> None:
    """Keep what frozen layers yield in the study's folder, and compute it if trials are to be trained."""
    left = train and any(not row.state.is_finished() for row in opened.get_trials(deepcopy=False))
    for setup in (each.setup for each in array.models.values()):
        if setup.frozen is not None:
            setup.frozen.folder = folder_of(opened.study_name) / "frozen"
            if left:
                setup.compute_frozen()


def choose_slots(opened: optuna.Study, array: ScorableArray, trials: int) -> None:
    """Set the fastest number of slots, which is measured once for a study and stored with it."""
    known: int | None = opened.user_attrs.get("slots")
    array.slots = known or array.fastest_slots(trials)
    array.notes = (*array.notes, f"slots: auto {'remembers' if known else 'measured'} {array.slots} as the fastest")
    if known is None and array.slots < trials:  # if equal, more may be faster once there are more trials
        opened.set_user_attr("slots", array.slots)


def open_planned(
    study: StudySpec, storage: BaseStorage, url: str | None, array: TrialArray, watch: Observer | None
) -> tuple[optuna.Study, int]:
    """Create or resume a study and plan its trials; any number of processes may do so at once.

    Args:
        study: The validated study.
        storage: The storage.
        url: URL of the storage; None for one in memory.
        array: The study's array.
        watch: Told why, if the storage has to be waited for.

    Returns:
        The study, and the budget.

    Raises:
        StudyError: The study in the storage has other settings, or the warm start cannot be learned.
    """
    storage = get_storage(storage)  # with a cache of ended trials; a study that is loaded from it anew reads none again

    def begin() -> tuple[optuna.Study, int]:
        array.resume_with(stored_facts(study.config.name, storage))
        opened = resumed(study, storage, array.facts)
        if opened is None:
            with starting(url, study.config.name):
                # Another process may have created it by now.
                array.resume_with(stored_facts(study.config.name, storage))
                learns = lacks_start(study, storage)
                start = earlier_studies.learned(study, storage, array.facts) if learns else None
                opened = open_study(study, storage, array.facts, start)
                plan(opened, as_chosen(study, opened))
        array.notes = (*array.notes, *store_config(opened, study))
        if study.config.objective is None and "label_shares" not in opened.user_attrs:
            setup = cast("ScorableArray", array).setup
            opened.set_user_attr("label_shares", setup.task.label_shares(setup.data))
        return opened, planned_rows(as_chosen(study, opened))[1]

    return Retry(url, waits=(watch or Silent()).note)(begin)


def run_trials(
    opened: optuna.Study,
    study: StudySpec,
    array: TrialArray,
    budget: int,
    watch: Observer,
    url: str | None,
    *,
    register: bool = False,
) -> Runner:
    """Run the trials that have not ended.

    Args:
        opened: The study, its trials planned.
        study: The validated study.
        array: The study's array.
        budget: Trials of the study in all.
        watch: Told of all events.
        url: URL of the storage; None for one in memory.
        register: Whether to register this process for `hpo stop`; commands have done so before.

    Returns:
        The runner, which says why the study stopped.

    Raises:
        HpoError: The storage or the folder of the study cannot be used.
        KeyboardInterrupt: After a signal, once all trials are put back.
    """
    chosen = as_chosen(study, opened)
    config, folder = chosen.config, folder_of(study.config.name)
    opened.pruner = pruners.make(*name_and_arguments(config.pruner), array.segment, array.horizon)
    if start := stored_in(opened.user_attrs):
        array.notes = (*array.notes, start.sentence())
    if config != study.config:
        array.notes = (*array.notes, auto.note(config.sampler, config.pruner, config.round_size, budget, opened.pruner))
    weights = checkpoints = None
    if config.objective is None:
        _make(folder)
        weights = Weights(
            folder / "trials", config.keep_best, 1 if study.direction == "minimize" else -1, study.criteria
        )
        checkpoints = Checkpoints(folder / "checkpoints", opened.user_attrs["fingerprint"])
    runner = Runner(opened, chosen.space, array, _rules(chosen, budget), watch, url, weights, checkpoints)
    rows = runner.study.get_trials(deepcopy=False)
    finished = [study.criteria.seen(row) for row in rows if row.state.is_finished()]
    watch.opened(config.name, config.metric or "value", study.direction, budget + sum(map(is_added, rows)), finished)
    for note in array.notes:
        watch.note(note)
    try:
        with joined(url, config.name, runner.stop_request.set) if register else nullcontext():
            stopped = runner.run()
        if stopped is not None:
            watch.note(stopped)
    finally:
        watch.closed()
    return runner


def _rules(study: StudySpec, budget: int) -> Rules:
    config = study.config
    return Rules(
        budget,
        config.seed,
        config.timeout,
        config.patience,
        config.max_consecutive_failures,
        config.round_size,
        config.stall_timeout or (None if config.objective else STALL_TIMEOUT),
        study.compared,
        limits=StudyLimits(**(config.stop.model_dump() if config.stop else {})),
        devices=config.shards,
        wave=auto.wave_of(config.sampler, config.round_size),
        criteria=study.criteria,
    )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(
            f"the weights and the report of the study cannot be written to {folder.absolute()} ({error.strerror}); run "
            "it in a folder of yours"
        ) from None
