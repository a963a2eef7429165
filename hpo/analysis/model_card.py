"""The model card of an exported trial: its scores, its hyperparameters, and how they were found."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from hpo.analysis import confirm_text
from hpo.analysis.trial_summary import in_words
from hpo.analysis.verdict_text import Table, named, sentence, sentences, tables
from hpo.core.formatting import plain
from hpo.core.paths import locate
from hpo.storage.snapshot import Results
from hpo.tasks.registry import reader_of
from hpo.tasks.task import Task


def card(results: Results, trial: FrozenTrial, task: str | None = None) -> str:
    """Return the model card, in the Hub's format: YAML metadata, then Markdown.

    Args:
        results: The study.
        trial: The trial whose weights are exported.
        task: Of several tasks, the name of the one that the card is for.
    """
    lines = [
        *_metadata(results, trial, task),
        *_title(results, trial, task),
        *_usage(results, task),
        *_scores(results, trial),
        *_hyperparameters(results, trial),
    ]
    return "\n".join([*lines, *_origin(results, f"trial {trial.number}", task)])


def confirmed_card(results: Results, each: Mapping[str, Any], run: FrozenTrial, task: str | None) -> str:
    """Return the model card of a run of a confirmation.

    Args:
        results: The study, with its confirmation.
        each: The configuration, an entry of the confirmation.
        run: The trial of the confirmation whose weights are exported.
        task: As of `card`.
    """
    cautions = confirmed_warnings(results, run)
    lines = [
        *_metadata(results, run, task),
        f"# {inline(results.name)}{_of(task)}",
        "",
        f"Fine-tuned from {inline(results.model(run))}: a fresh run of {inline(each['name'])} of an hpo "
        f"study, of {len(each['runs'])} the one of median validation score.",
        "",
        *_cautions(cautions),
        *_usage(results, task),
        "## Scores",
        "",
        f"- validation {inline(results.metric)} of this run: {run.value:.4f}",
        *_confirmation(results),
        *_hyperparameters(results, run),
    ]
    return "\n".join([*lines, *_origin(results, str(each["name"]), task)])


def confirmed_warnings(results: Results, run: FrozenTrial) -> list[str]:
    """Return warnings about the use of the weights of a confirmation's run, a sentence each."""
    found = []
    if run.user_attrs.get("collapsed") is True:
        found.append(
            f"Run {run.number} has collapsed: it gives every row of the validation split the same answer. It has "
            "learned nothing that tells them apart; do not use it"
        )
    if (results.confirmation or {}).get("winner") is None:
        found.append(f"No configuration of {results.name} is shown to be better than the others: see the scores")
    return found


def warnings(results: Results, trial: FrozenTrial) -> list[str]:
    """Return warnings about the use of a trial's weights, a sentence each."""
    look = results.verdict
    beyond = "; ".join(results.criteria.beyond(trial))
    found = [f"Trial {trial.number} is beyond the limits of the study: {beyond}"] if beyond else []
    classes = (look or {}).get("classes") or {}
    is_best = look is not None and look["best"]["number"] == trial.number
    if trial.user_attrs.get("collapsed") is True or (is_best and classes.get("collapsed")):
        on_test = is_best and classes.get("collapsed")
        split = "test" if on_test else "validation"
        collapse = (classes if on_test else trial.user_attrs).get("collapse")
        does = f"{collapse} on" if collapse else "gives every row of"
        does += f" the {split} split" + ("" if collapse else " the same answer")
        found.append(
            f"Trial {trial.number} has collapsed: it {does}. It has learned nothing that tells them apart; do not use "
            "it"
        )
    elif is_best and (never := classes.get("never_predicted")):
        found.append(
            f"Trial {trial.number} never predicts {len(never)} of {classes['count']} labels on the test split: "
            f"{named(never)}"
        )
    return found


# ---------------------------------------------------------------- parts


def _config(results: Results) -> dict[str, Any]:
    return dict(results.attrs.get("config", {}))


def _task(results: Results, task: str | None) -> Task:
    """Return the task of the model; of several, the one of this name."""
    if task is None:
        return reader_of(results.facts.get("task"))
    return reader_of(_settings(results, task).get("task"))


def _settings(results: Results, task: str | None) -> dict[str, Any]:
    """Return the settings of the study as those of a study of the task alone."""
    config = _config(results)
    return config if task is None else {**config, **config["tasks"][task]}


def _of(task: str | None) -> str:
    return "" if task is None else f": {inline(task)}"


def _is_best(results: Results, trial: FrozenTrial) -> bool:
    return results.best is not None and results.best.number == trial.number


def _metadata(results: Results, trial: FrozenTrial, task: str | None) -> list[str]:
    config = _config(results)
    model = str(results.model(trial))
    local = locate(model, Path(config.get("folder", ".")))
    return [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {_task(results, task).pipeline_tag}",
        *(
            [f"base_model: {json.dumps(model)}"] if local is None else []
        ),  # the Hub would take a path for the name of a model
        f"metrics: [{json.dumps(results.metric)}]",
        "---",
    ]


def _title(results: Results, trial: FrozenTrial, task: str | None) -> list[str]:
    which = "the best of the trials of an hpo study"
    if not _is_best(results, trial):
        best = f", whose best one is trial {results.best.number}" if results.best else ""
        which = f"trial {trial.number} of an hpo study{best}"
    cautions = warnings(results, trial)
    return [
        f"# {inline(results.name)}{_of(task)}",
        "",
        f"Fine-tuned from {inline(results.model(trial))}: {which}.",
        "",
        *_others(results, task),
        *_cautions(cautions),
    ]


def _others(results: Results, task: str | None) -> list[str]:
    """Return that a model was trained for other tasks too, if it was."""
    if task is None:
        return []
    others = [inline(name) for name in _config(results)["tasks"] if name != task]
    if not others:
        return []
    return [f"Its encoder was trained for {', '.join(others)} at the same time; their heads are in other folders.", ""]


def _cautions(cautions: Sequence[str]) -> list[str]:
    return ["## Warning", "", *(f"- {inline(caution)}" for caution in cautions), ""] if cautions else []


def _usage(results: Results, task: str | None) -> list[str]:
    code = _task(results, task).usage(_settings(results, task))
    return ["## Use without hpo", "", "```python", *code.splitlines(), "```", ""] if code else []


def _scores(results: Results, trial: FrozenTrial) -> list[str]:
    return [
        "## Scores",
        "",
        f"- validation {inline(results.metric)}: {trial.value:.4f} (what the search optimised, so it flatters)",
        *(f"- {inline(text)}" for text in _test_scores(results, trial.number)),
        "",
        *(_tables(results) if _is_best(results, trial) else []),
        *(
            ["Confirmed later, with other weights than these:", "", *_confirmation(results)]
            if results.confirmation
            else []
        ),
    ]


def _confirmation(results: Results) -> list[str]:
    """Return what the confirmation of the study showed, as a list and a table."""
    found = results.confirmation
    if found is None:
        return []
    said = [f"- {inline(text)}" for text in confirm_text.sentences(found)]
    return [*said, "", *(line for table in confirm_text.tables(found) for line in _markdown(table))]


def _hyperparameters(results: Results, trial: FrozenTrial) -> list[str]:
    return [
        "## Hyperparameters",
        "",
        "Searched:",
        "",
        *(_setting(name, value) for name, value in sorted(trial.params.items())),
        "",
        "Not searched (fixed by the search space, or defaults):",
        "",
        *(_setting(name, value) for name, value in sorted(results.not_searched(trial).items())),
        "",
    ]


def _origin(results: Results, configuration: str, task: str | None) -> list[str]:
    config, facts = _settings(results, task), results.facts
    space, data = config.get("space", {}), config.get("data") or {}
    versions = {name: facts[name] for name in ("torch", "transformers") if name in facts}
    counts = ", ".join(f"{count} {state}" for state, count in results.counts.items() if count)
    return [
        "## How they were found",
        "",
        f"- {inline(configuration)} of {len(results.trials)} trials ({counts})",
        *([f"- chosen between the models {', '.join(map(inline, config['model']))}"] if results.several_models else []),
        f"- sampler: {inline(json.dumps(config.get('sampler')))}; pruner: {inline(json.dumps(config.get('pruner')))}; "
        f"seed: {inline(config.get('seed'))}",
        f"- data: {inline(json.dumps(data))}, SHA-256 of the rows {inline(facts.get('data'))}",
        f"- precision: {inline(facts.get('precision'))} on {inline(facts.get('device'))}; "
        f"versions: {inline(json.dumps(versions))}",
        *_base(config.get("base_weights"), facts),
        f"- search space ({inline(space.get('source') or 'no source given')}):",
        "",
        "```json",
        json.dumps(space.get("parameters", {}), indent=2),
        "```",
        "",
        "To run the study again, where its model and data are, with the `study.yaml` beside this card:",
        "",
        "```",
        "hpo run study.yaml",
        "```",
        "",
    ]


def _base(held: str | None, facts: Mapping[str, Any]) -> list[str]:
    """Return how the frozen layers below the adapters were held, if in few bits."""
    if held is None:
        return []
    by = f"bitsandbytes {inline(facts.get('bitsandbytes'))}"
    return [f"- base: its linear layers were held in {inline(held)} while it was trained ({by}); here they are in full"]


def inline(value: Any) -> str:
    """Return a value as one line of Markdown without HTML, links, images or code."""
    return re.sub(r"[\\`*\[\]]", r"\\\g<0>", escape(plain(str(value)), quote=False))


def _test_scores(results: Results, number: int) -> list[str]:
    """Return a trial's scores on the test split, in words."""
    look = results.verdict
    if look is None:
        return ["test: not scored"]
    if look["best"]["number"] == number:
        return sentences(look, results.looks)
    baseline = look["baseline"]
    if baseline is not None and baseline["number"] == number:
        return [f"this is the published default. {sentence(look)}"]
    return ["test: not scored; only the best trial and the published default are"]


def _tables(results: Results) -> list[str]:
    """Return the scores by class and the confusion matrix in Markdown."""
    return [line for table in (tables(results.verdict) if results.verdict else []) for line in _markdown(table)]


def _markdown(table: Table) -> list[str]:
    title, heads, rows = table
    cells = [[inline(cell).replace("|", "\\|") for cell in row] for row in (heads, *rows)]
    first, *rest = (f"| {' | '.join(row)} |" for row in cells)
    return [f"{title}:", "", first, "|---" * len(heads) + "|", *rest, ""]


def _setting(name: str, value: Any) -> str:
    return f"- {inline(name)}: {inline(in_words(name, value))}"
