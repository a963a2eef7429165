"""The best trial's weights as a Hugging Face folder, with a model card that says how they came about.

Beside the card lies the study file that runs the study again.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from hpo import yaml
from hpo.errors import HpoError, StudyError
from hpo.files import absolute, locate
from hpo.formatting import plain
from hpo.holdout import sentence
from hpo.results import Results


def export(results: Results, weights: Path, target: Path) -> Path:
    """Copy the best trial's kept weights and write their model card and study file.

    Args:
        results: The study.
        weights: Folder of the kept weights, one folder a trial.
        target: Folder to write; must be new or empty.

    Returns:
        The folder, which `transformers.pipeline` loads.

    Raises:
        StudyError: No trial completed, its weights are gone, or the folder is not empty.
        ModelError: The model that adapters belong to is gone.
        MissingExtraError: There are adapters, and `peft` is not installed.
    """
    best = results.best
    if best is None:
        raise StudyError(
            f"study {results.name!r} has no completed trial to export; run it first: hpo run {results.name}"
        )
    source = weights / str(best.number)
    if not source.is_dir():
        raise StudyError(
            f"the weights of trial {best.number} are not in {source}: export from the folder in which the study ran, "
            f"or train them again here: hpo run {results.name} (a custom objective keeps its weights itself)"
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StudyError(f"{target} exists and is not empty; name a new folder with -o")
    try:
        if (source / "adapter_config.json").is_file():
            _merge(source, target)
            shutil.copytree(source, target / "adapter")
        else:
            shutil.copytree(source, target, dirs_exist_ok=True)
        (target / "README.md").write_text(card(results, best), encoding="utf-8")
        yaml.write(study_file(results.attrs["config"]), target / "study.yaml")
    except OSError as error:
        raise HpoError(f"{target} cannot be written: {error.strerror or error}; name another folder with -o") from None
    return target


def _merge(adapter: Path, target: Path) -> None:
    """Write an adapter's pretrained model with the adapter added."""
    from hpo.finetune.adapter_files import merge

    merge(adapter, target)


def study_file(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored study as the content of a study file that runs from any folder of this machine.

    Args:
        config: What `Study.to_dict` wrote: the space is written out and there is no storage.
    """
    folder = Path(config["folder"])
    settings = {key: value for key, value in config.items() if value is not None and key != "folder"}
    data = {key: value for key, value in config["data"].items() if value is not None}
    for split in ("train", "validation", "test") if "dataset" not in data else ():
        if isinstance(data[split], str):
            data[split] = absolute(data[split], folder)
        elif isinstance(data[split], list):
            data[split] = [absolute(name, folder) for name in data[split]]
    checksums = {absolute(name, folder): digest for name, digest in config["checksums"].items()}
    return {**settings, "model": absolute(config["model"], folder), "data": data, "checksums": checksums}


def inline(value: Any) -> str:
    """Return a value as one line of Markdown that holds no HTML, link, image or code."""
    return re.sub(r"[\\`*\[\]]", r"\\\g<0>", escape(plain(str(value)), quote=False))


def card(results: Results, best: FrozenTrial) -> str:
    """Return the model card, in the Hub's format: YAML metadata, then Markdown."""
    config: dict[str, Any] = dict(results.attrs.get("config", {}))
    test, facts = results.verdict, results.facts
    model = str(config.get("model"))
    local = locate(model, Path(config.get("folder", ".")))
    space, data = config.get("space", {}), config.get("data") or {}
    versions = {name: facts[name] for name in ("torch", "transformers") if name in facts}
    counts = ", ".join(f"{count} {state}" for state, count in results.counts.items() if count)
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-classification",
        *([f"base_model: {json.dumps(model)}"] if local is None else []),  # the Hub would look for a name of its own
        f"metrics: [{json.dumps(results.metric)}]",
        "---",
        f"# {inline(results.name)}",
        "",
        f"Fine-tuned from {inline(model)}: the best of the trials of an hpo study.",
        "",
        "## Scores",
        "",
        f"- validation {inline(results.metric)}: {best.value:.4f} (what the search optimised, so it flatters)",
        f"- {inline(sentence(test))}" if test else "- test: not scored",
        "",
        "## Hyperparameters",
        "",
        *(f"- {inline(name)}: {inline(value)}" for name, value in sorted(results.params(best).items())),
        "",
        "## How they were found",
        "",
        f"- trial {best.number} of {len(results.trials)} ({counts})",
        f"- sampler: {inline(json.dumps(config.get('sampler')))}; pruner: {inline(json.dumps(config.get('pruner')))}; "
        f"seed: {inline(config.get('seed'))}",
        f"- data: {inline(json.dumps(data))}, SHA-256 of the rows {inline(facts.get('data'))}",
        f"- precision: {inline(facts.get('precision'))} on {inline(facts.get('device'))}; "
        f"versions: {inline(json.dumps(versions))}",
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
    return "\n".join(lines)
