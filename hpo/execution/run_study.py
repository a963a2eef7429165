"""The way through the house: a study file, or a Python objective, to a finished `optuna.Study`."""

from __future__ import annotations

import importlib
import inspect
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Never, cast

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from hpo.config import checks, study_spec
from hpo.config.paths import verify
from hpo.core.errors import ConfigError, DataError, Problem, StudyError
from hpo.core.events import Observer, Silent
from hpo.core.interrupts import StopRequest
from hpo.core.seeds import derived_seed
from hpo.core.trainer import Objective, TrialArray
from hpo.execution import optuna_arguments
from hpo.execution.best_weights import Weights
from hpo.execution.checkpoint_store import Checkpoints
from hpo.execution.custom_objective import imported
from hpo.execution.generator_array import GeneratorArray
from hpo.execution.objective_source import source_digest
from hpo.execution.processes import joined
from hpo.execution.runner import Runner
from hpo.execution.study_setup import (
    DEFAULT_TRIALS,
    SOURCE,
    folder_of,
    open_study,
    plan,
    planned_rows,
    record,
    refuse_another_objective,
    resumed,
    stored_facts,
)
from hpo.recipe.hyperparameters import DEFAULTS, trains_adapters
from hpo.recipe.trial_limits import TrialLimits
from hpo.search import pruners, samplers
from hpo.search.plugins import name_and_arguments
from hpo.search.stopping import Rules
from hpo.space.search_space import SearchSpace
from hpo.storage import backends
from hpo.storage.retry import Retry
from hpo.storage.trial_locks import starting
from hpo.storage.urls import redacted

if TYPE_CHECKING:
    from hpo.finetune.data.sources import Dataset
    from hpo.finetune.scorable import ScorableArray

log = logging.getLogger(__name__)

Named = str | Mapping[str, Any]
_NEEDS_SPACE = "needs a space; without one, Optuna runs trials"

STALL_TIMEOUT = 1800.0  # seconds; a step of fine-tuning, or a look at the validation split, takes far less


@dataclass(frozen=True)
class Finished:
    """A study at rest.

    Attributes:
        study: The Optuna study.
        array: What trained it, still open, to score the test split with.
        stopped: Why it stopped early, or None.
        failed: Whether it stopped because trials failed in a row.
        folder: Where its files are, `runs/<study>`.
    """

    study: optuna.Study
    array: TrialArray
    stopped: str | None
    failed: bool
    folder: Path


def open_array(study: study_spec.StudySpec) -> TrialArray:
    """Build what trains the trials of a study: reads the data and the model, writes nothing.

    Raises:
        HpoError: The data, the model or the custom objective is not as the file says.
    """
    if study.config.checksums:
        log.info("checking the SHA-256 of %d files", len(study.config.checksums))
    verify(study.config.checksums, study.folder)
    if study.config.objective is not None:
        log.info("importing %s", study.config.objective)
        objective = imported(study.config.objective, study.folder)
        checks.custom_parameters(study, objective)
        assert study.config.slots != "auto"  # which `configs.build` refuses
        return _own_array(objective, study.config.slots)
    return _open_finetuning(study)


def _own_array(objective: Any, slots: int = 1) -> GeneratorArray:
    """Return the array of a custom objective, which knows its source."""
    array = GeneratorArray(objective, slots)
    source = source_digest(objective)
    if source is None:
        array.notes = ("the objective's source cannot be read here: an edit of it between two runs goes unnoticed",)
    else:
        array.facts = {SOURCE: source}
    return array


def _open_finetuning(study: study_spec.StudySpec) -> ScorableArray:
    """Read the data, and only then load torch and build the array of the built-in objective."""
    config = study.config
    assert config.data is not None
    log.info("loading pandas")
    data = importlib.import_module("hpo.finetune.data.sources").load(
        config.data, config.task, config.seed, study.folder
    )
    _refuse_class_weights(study, data)
    log.info("loading torch and transformers")
    opened = importlib.import_module("hpo.finetune.open").open_array
    array: ScorableArray = opened(config, _limits(study.space), study.folder, data)
    array.notes = (*array.notes, *data.notes)
    return array


def _limits(space: SearchSpace) -> TrialLimits:
    """Return what a search space allows of trials."""

    def values(name: str) -> Sequence[Any]:
        return space.values_of(name, DEFAULTS[name])

    adapters = trains_adapters({*space.parameters, *space.fixed})
    return TrialLimits(
        epochs=max(values("epochs")),
        smallest_batch=min(values("batch_size")),
        layer_decay="layer_decay" in space.parameters or values("layer_decay")[0] != DEFAULTS["layer_decay"],
        lora_rank=max(values("lora_rank")) if adapters else None,
        lora_targets=tuple(values("lora_targets")) if adapters else (),
    )


def _refuse_class_weights(study: study_spec.StudySpec, data: Dataset) -> None:
    weights = list(map(str, study.space.values_of("class_weights", DEFAULTS["class_weights"])))
    if data.task != "single_label" and set(weights) != {"none"}:
        raise DataError(
            f"class_weights: {', '.join(weights)} needs one label a row, and the task of this data is {data.task}; "
            "leave class_weights out of the space"
        )


def run(study: study_spec.StudySpec, url: str, watch: Observer | None = None, *, train: bool = True) -> Finished:
    """Run a study file to its end, or go on with it.

    Args:
        study: The validated file.
        url: URL of the storage.
        watch: Told of everything.
        train: Whether to run what has not ended; if not, the study is opened as it is.

    Raises:
        HpoError: The data, model, storage or study is not as the file says; nothing has been written.
    """
    backends.refuse(url)
    array = open_array(study)
    if study.config.metric is None and "metric" in array.facts:  # the task's own, known once the labels are read
        study = replace(study, config=study.config.model_copy(update={"metric": array.facts["metric"]}))
    if not (train or study.config.name in optuna.get_all_study_names(backends.look(url))):
        raise StudyError(
            f"study {study.config.name} is not in {redacted(url)} any more, where it has just been run: the storage "
            "was deleted or replaced. Put it back, and run the same command again to go on"
        )
    log.info("opening the study in %s", redacted(url))
    opened, budget = _opened(study, backends.connect(url), url, array, watch)
    if not train:
        return Finished(opened, array, None, False, folder_of(study.config.name))
    auto = study.config.slots == "auto"
    if auto:
        _choose_slots(opened, cast("ScorableArray", array), planned_rows(study)[1])
    runner = _run(opened, study, array, budget, watch or Silent(), url)
    if auto and array.slots < opened.user_attrs.get("slots", 0):
        opened.set_user_attr("slots", array.slots)  # memory ran out
    return Finished(opened, array, runner.stopped, runner.failed, folder_of(study.config.name))


def _choose_slots(opened: optuna.Study, array: ScorableArray, trials: int) -> None:
    """Give an array the slots that are fastest, measured once for a study."""
    known: int | None = opened.user_attrs.get("slots")
    array.slots = known or array.fastest_slots(trials)
    array.notes = (*array.notes, f"slots: auto {'remembers' if known else 'measured'} {array.slots} as the fastest")
    if known is None and array.slots < trials:  # else more may be faster, once there are more trials
        opened.set_user_attr("slots", array.slots)


def _opened(
    study: study_spec.StudySpec, kept: BaseStorage, url: str | None, array: TrialArray, watch: Observer | None
) -> tuple[optuna.Study, int]:
    """Return the study, created or resumed, with its rows planned, and the budget; any number may do so at once."""

    def begin() -> tuple[optuna.Study, int]:
        array.settle(stored_facts(study.config.name, kept))
        opened = resumed(study, kept, array.facts)
        if opened is None:
            with starting(url, study.config.name):
                array.settle(stored_facts(study.config.name, kept))  # somebody else may have made it by now
                opened = open_study(study, kept, array.facts)
                plan(opened, study)
        array.notes = (*array.notes, *record(opened, study))
        if study.config.objective is None and "label_shares" not in opened.user_attrs:
            opened.set_user_attr("label_shares", cast("ScorableArray", array).setup.data.label_shares)
        return opened, planned_rows(study)[1]

    return Retry(url, waits=(watch or Silent()).note)(begin)


def _run(
    opened: optuna.Study,
    study: study_spec.StudySpec,
    array: TrialArray,
    budget: int,
    watch: Observer,
    url: str | None,
    *,
    alone: bool = False,
) -> Runner:
    """Run what has not ended; `alone` without a command that hears of `hpo stop`."""
    config, folder = study.config, folder_of(study.config.name)
    opened.pruner = pruners.make(*name_and_arguments(config.pruner), array.segment, array.horizon)
    rules = Rules(
        budget,
        config.seed,
        config.timeout,
        config.patience,
        config.max_consecutive_failures,
        config.round_size,
        config.stall_timeout or (None if config.objective else STALL_TIMEOUT),
        study.compared,
    )
    weights = checkpoints = None
    if config.objective is None:
        _make(folder)
        weights = Weights(folder / "trials", config.keep_best, 1 if study.direction == "minimize" else -1)
        checkpoints = Checkpoints(folder / "checkpoints", opened.user_attrs["fingerprint"])
    runner = Runner(opened, study.space, array, rules, watch, url, weights, checkpoints)
    finished = [row for row in runner.study.get_trials(deepcopy=False) if row.state.is_finished()]
    watch.opened(config.name, config.metric or "value", study.direction, budget, finished)
    for note in array.notes:
        watch.note(note)
    try:
        with joined(url, config.name, runner.stop_request.set) if alone else nullcontext():
            stopped = runner.run()
        if stopped is not None:
            watch.note(stopped)
    finally:
        watch.closed()
    return runner


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(
            f"the weights and the report of the study cannot be written to {folder.absolute()} ({error.strerror}); run "
            "it in a folder of yours"
        ) from None


# ---------------------------------------------------------------- Python API


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
    seed: int = 0,
    timeout: float | None = None,
    patience: int | None = None,
    round_size: int | None = None,
    max_consecutive_failures: int = 3,
    same_objective: bool = False,
    watch: Observer | None = None,
    **others: Never,
) -> optuna.Study:
    """Optimise a custom objective.

    With a `space`, the objective takes `params` (name -> value) and either yields scores, of which the best
    counts and after each of which the trial may be pruned, or returns one. With `space=None` it is an unchanged
    Optuna objective: it takes an `optuna.Trial`, suggests and prunes by itself.

    Args:
        objective: The function; its attribute `parameters`, if it has one, lists the names it reads.
        space: A search space, the mapping it is read from, or the name of a file in `search_spaces/`.
        direction: Which way is better.
        trials: Rows of the study in all; every point for a grid, otherwise 20.
        name: The study's name.
        storage: URL of an Optuna storage, in which a study of that name goes on; in memory if None.
        sampler: As in a study file.
        pruner: As in a study file; steps are what `Evaluation.at` says, or count yields.
        prune_on: Metric of `Evaluation.metrics` that the pruner compares in place of the value, as in a study file;
            needs a space.
        seed: Everything random in the search derives from it.
        timeout: Seconds after which trials that run are put back.
        patience: Evaluations without a better one after which a trial ends; needs a space.
        round_size: Trials of a round, whose results do not depend on who is faster; trials run free if None.
        max_consecutive_failures: Failed trials in a row after which the study stops.
        same_objective: Go on with a study although the objective was edited, renamed or moved since, which is
            refused otherwise: its trials would not compare. Where its source cannot be read, only its name counts.
        watch: Told of everything; without a space, of trials that end.
        **others: Refused; of an argument of Optuna's, the error says what to write instead.

    Returns:
        The Optuna study.

    Raises:
        HpoError: The space, sampler, pruner or storage is not usable.
    """
    if not callable(objective):
        raise ConfigError("optimize()", [Problem(("objective",), f"must be a function of params, not {objective!r}")])
    known = [name for name, entry in inspect.signature(optimize).parameters.items() if entry.kind != entry.VAR_KEYWORD]
    if wrong := optuna_arguments.argument_problems(others, known) + optuna_arguments.object_problems(sampler, pruner):
        raise ConfigError("optimize()", wrong)
    settings = {
        "name": name,
        "objective": f"{objective.__module__}:{getattr(objective, '__qualname__', f'{type(objective).__name__}()')}",
        "direction": direction,
        "space": space.to_dict() if isinstance(space, SearchSpace) else space,
        "sampler": sampler if isinstance(sampler, str) else dict(sampler),
        "pruner": pruner if isinstance(pruner, str) else dict(pruner),
        "prune_on": dict(prune_on) if isinstance(prune_on, Mapping) else prune_on,
        "trials": trials,
        "seed": seed,
        "timeout": timeout,
        "patience": patience,
        "round_size": round_size,
        "max_consecutive_failures": max_consecutive_failures,
        "same_objective": same_objective,
    }
    if space is None:
        needed = {"patience": patience, "prune_on": prune_on}
        if wrong := [Problem((key,), _NEEDS_SPACE) for key, given in needed.items() if given is not None]:
            raise ConfigError("optimize()", wrong)
        settings["space"] = {"suggested_by_the_objective": [0, 1]}  # a study has one; it is not read
    study = study_spec.build(settings, "optimize()", Path.cwd())
    kept = optuna.storages.InMemoryStorage() if storage is None else backends.connect(storage)
    if space is None:
        return _optimize_unchanged(objective, study, kept, watch or Silent(), storage)
    checks.custom_parameters(study, objective)
    array = _own_array(objective)
    opened, budget = _opened(study, kept, storage, array, watch)
    runner = _run(opened, study, array, budget, watch or Silent(), storage, alone=True)
    rows = opened.get_trials(deepcopy=False)
    if runner.stopped is not None:
        warnings.warn(runner.stopped, stacklevel=2)
    elif not any(row.state == TrialState.COMPLETE for row in rows):
        last = rows[-1].user_attrs
        why = ": ".join(str(last[name]) for name in ("reason", "detail") if name in last)
        warnings.warn(f"no trial of {name} has completed; the last ended with {why}", stacklevel=2)
    return opened


def _optimize_unchanged(
    objective: Any, study: study_spec.StudySpec, kept: BaseStorage, watch: Observer, url: str | None
) -> optuna.Study:
    """Run an Optuna objective as Optuna does, with the budget in rows and the failures bounded."""
    config = study.config
    opened = optuna.create_study(
        storage=kept,
        study_name=config.name,
        direction=study.direction,
        load_if_exists=True,
        pruner=pruners.make(*name_and_arguments(config.pruner)),
    )
    source = source_digest(objective)
    known = {"objective": config.objective} | ({} if source is None else {SOURCE: source})
    refuse_another_objective(opened, known, config.same_objective)
    before = opened.get_trials(deepcopy=False)
    # The trial number in the seed: a resumed study must not draw its first trials again.
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
