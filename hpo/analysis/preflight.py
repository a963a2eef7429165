"""What a study would do, found without training: its trials, its data, and about how long it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, cast

import optuna

from hpo.analysis.memory_text import estimate_text, shortage
from hpo.config.study_spec import StudySpec
from hpo.core.formatting import number, plain, size
from hpo.execution import model_costs
from hpo.execution.earlier_studies import learned
from hpo.execution.study_setup import as_chosen, folder_of, lacks_start, planned_rows
from hpo.execution.trial_arrays import open_array
from hpo.recipe.hyperparameters import defaults
from hpo.search.plugins import name_and_arguments
from hpo.storage import backends

if TYPE_CHECKING:
    from hpo.finetune.scorable import ScorableArray
    from hpo.finetune.setup import Setup
    from hpo.finetune.several_models import SeveralModels

LONGEST = 60  # tokens of a row that are shown


@dataclass(frozen=True)
class Plan:
    """What a study would do.

    Attributes:
        facts: Label -> sentence, in the order to show them.
        notes: What the user should know before it runs.
        seconds: Estimate for the whole study if no trial is pruned; None for a custom objective.
        examples: Rows of train as the model sees them.
    """

    facts: dict[str, str]
    notes: list[str]
    seconds: float | None
    examples: list[str] = field(default_factory=list)


def check(study: StudySpec, url: str) -> Plan:
    """Validate a study with its data and model, and return what it would do; writes nothing.

    Args:
        study: The validated study.
        url: URL of its storage, in which a warm start finds earlier studies.

    Raises:
        HpoError: The study, its data or its model is not valid.
    """
    array = open_array(study)
    if study.config.metric is None and "metric" in array.facts:
        study = replace(study, config=study.config.model_copy(update={"metric": array.facts["metric"]}))
    planned, budget = planned_rows(study)
    config, space = study.config, study.space
    facts = {"study": config.name, "trials": _trials(study, planned, budget)}
    facts["search space"] = ", ".join([*space.parameters, *(f"{n}={v}" for n, v in space.fixed.items())])
    chosen = as_chosen(study).config
    facts["sampler, pruner"] = f"{name_and_arguments(chosen.sampler)[0]}, {name_and_arguments(chosen.pruner)[0]}"
    if chosen != config:
        facts["sampler, pruner"] += " (auto)"
    if config.prune_on is not None:
        facts["sampler, pruner"] += f" on the {name_and_arguments(config.prune_on)[0]}"
    facts |= _warm_start(study, url, array.facts)
    notes = [
        f"the published {name} {published} is not a choice of the space; trial 0 takes {used}"
        for name, (published, used) in (space.moved_baseline() if config.baseline else {}).items()
    ]
    notes += array.notes
    if config.objective is not None:
        return Plan(facts | {"objective": config.objective}, notes, None)
    if config.baseline and not space.source:  # a published space fixes published values
        published = defaults(space.names)
        notes += [
            f"{name} is fixed at {value}, for the published default too, where it would be {_shown(published[name])}"
            for name, value in space.fixed.items()
            if published[name] != value
        ]
    tuning = cast("ScorableArray", array)
    seconds = _describe(study, tuning, len(planned), facts, notes)
    of = {name: f"{name}: " if len(tuning.models) > 1 else "" for name in tuning.models}
    examples = [of[name] + row for name, each in tuning.models.items() for row in _examples(each.setup)]
    return Plan(facts, notes, seconds, examples)


def _shown(value: Any) -> str:
    return "left as it is" if value is None else str(value)


def _warm_start(study: StudySpec, url: str, facts: Mapping[str, Any]) -> dict[str, str]:
    """Return what a study that has not begun would learn from earlier ones."""
    storage = backends.look(url) if backends.exists(url) else optuna.storages.InMemoryStorage()
    if not lacks_start(study, storage):
        return {}
    return {"warm start": learned(study, storage, facts).sentence().removeprefix("warm start: ")}


def _trials(study: StudySpec, planned: list[Any], budget: int) -> str:
    text = str(len(planned))
    if planned and planned[0][1].get("baseline"):
        text += ", trial 0 is the published default"
    if len(planned) < budget:
        text += f" (the space has only {study.space.size:g} points, so fewer than {budget})"
    return text


def _describe(study: StudySpec, array: ScorableArray, trials: int, facts: dict[str, str], notes: list[str]) -> float:
    """Add facts and notes of the model and the data; return the estimated seconds of the study."""
    setup, data = array.setup, array.setup.data
    facts["model" if len(array.models) == 1 else "models"] = (
        f"{', '.join(array.models)}, {setup.precision} on {setup.device.type}"
    )
    facts["task, metric"] = f"{data.task}, {setup.metric} ({study.direction})"
    facts["rows"] = ", ".join(f"{len(split)} {name}" for name, split in data.splits.items())
    facts |= setup.task.facts(data)
    for name, each in array.models.items():
        of = f" with {name}" if len(array.models) > 1 else ""
        _describe_tokens(each.setup, folder_of(study.config.name) / "frozen", of, facts, notes)
    notes += setup.task.doubts(data, setup.metric)
    _describe_memory(study, array, facts, notes)
    _describe_costs(study, cast("SeveralModels", array), facts, notes)
    rows = setup.train_rows * _mean_epochs(study) * trials
    return rows * array.seconds_per_example() * 1.15  # scoring and the optimiser: 10 to 20 % on top


def _describe_costs(study: StudySpec, array: SeveralModels, facts: dict[str, str], notes: list[str]) -> None:
    """Add what the models cost, if the study asks, and a note of each that is beyond a limit whatever it learns."""
    if not (names := model_costs.asked(study)):
        return
    costs = array.measured_costs()
    facts["costs of the models"] = model_costs.costs_text(costs, names)
    for model, each in costs.items():
        beyond = [limit for limit in study.criteria.limits if limit.name in each and limit.excess(each[limit.name]) > 0]
        notes += [
            f"no trial of {model} can be within the limits: its {limit.name} is {number(each[limit.name])}, and the "
            f"limit is {limit.says()}"
            for limit in beyond
        ]


def _describe_memory(study: StudySpec, array: ScorableArray, facts: dict[str, str], notes: list[str]) -> None:
    """Add what training needs of memory, and a note if that is not there; nothing where it cannot be told."""
    if (memory := array.memory()) is None:
        return
    parts, config = asdict(memory), study.config
    facts["memory"] = estimate_text(parts)
    if config.slots == "auto":
        facts["memory"] += ", for one slot: slots: auto measures how many fit"
    settings = {name: getattr(config, name) for name in ("slots", "micro_batch", "gradient_checkpointing")}
    note = shortage(parts, array.memory_free(), array.setup.device.type, settings)
    notes += [] if note is None else [note]


def _describe_tokens(setup: Setup, frozen: Path, of: str, facts: dict[str, str], notes: list[str]) -> None:
    """Add facts and notes of the tokens of a model.

    Args:
        setup: The model's data and settings.
        frozen: Folder of what frozen layers yield.
        of: Names the model where there are several; else empty.
        facts: Label -> sentence, added to.
        notes: Added to.
    """
    lengths = setup.tokens["train"].lengths
    facts[f"tokens a {setup.task.row}{of}"] = f"{lengths.mean():.0f} on average, {lengths.max()} at most"
    facts |= {f"{name}{of}": sentence for name, sentence in setup.task.row_facts(setup.rows, setup.max_length).items()}
    if setup.frozen is not None:
        numbers = [number for number in setup.frozen_layers if number]
        kept = f"{size(setup.frozen.bytes)}{' each' if numbers[1:] else ''} for {', '.join(map(str, numbers))}"
        facts[f"frozen layers{of}"] = f"computed once and kept in {frozen}: {kept}"
    cut = float((lengths >= setup.max_length).mean())
    if cut > 0.05 and setup.task.cuts:
        row = f"{setup.task.row}s"
        notes.append(f"{cut:.0%} of the {row} are cut at {setup.max_length} tokens{of}; raise max_length to read on")


def _examples(setup: Setup) -> list[str]:
    """Return the first rows of train as the model sees them, with what is trained on marked."""
    shown = []
    for ids, marked in setup.task.examples(setup.rows["train"], setup.data.labels):
        tokens = setup.tokenizer.convert_ids_to_tokens(list(ids[:LONGEST]))
        more = [f"... ({len(ids) - LONGEST} more)"] if len(ids) > LONGEST else []
        shown.append(marked([*map(plain, tokens), *more]))
    return shown


def _mean_epochs(study: StudySpec) -> float:
    """Return the mean epochs of a trial over random draws from the space."""
    if "epochs" not in study.space.parameters:
        return float(study.space.fixed.get("epochs", 3))
    sampler = optuna.samplers.RandomSampler(seed=0)
    drawn = optuna.create_study(sampler=sampler)
    return mean(float(study.space.suggest(drawn.ask()).get("epochs", 3)) for _ in range(64))
