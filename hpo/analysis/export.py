"""Exports a trial's weights as a Hugging Face folder, with a model card and a study file that runs the study again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from hpo.analysis.model_card import card, confirmed_card
from hpo.config import yaml
from hpo.core.errors import HpoError, StudyError
from hpo.core.paths import absolute, locate
from hpo.recipe.hyperparameters import MODEL
from hpo.storage.snapshot import Results


def export(results: Results, weights: Path, target: Path, number: int | None = None) -> Path:
    """Copy a trial's saved weights and write their model card and study file.

    Args:
        results: The study.
        weights: Folder of the saved weights, one folder a trial.
        target: Folder to write; must be new or empty.
        number: Number of the trial; None means the best one.

    Returns:
        The folder, which `transformers.pipeline` loads; of a study of several tasks it has such a folder for each.

    Raises:
        StudyError: There is no such completed trial, its weights are missing, or the folder is not empty.
        ModelError: The pretrained model of the adapters is missing.
        MissingExtraError: The weights are adapters, and `peft` is not installed.
    """
    trial = chosen(results, number)
    _write(results, weights_of(results, weights, trial), target, lambda task: card(results, trial, task))
    return target


def export_confirmed(results: Results, confirmation: Results, weights: Path, target: Path) -> Path:
    """Copy the weights of the confirmed configuration's run of median validation score, as `export` does.

    Args:
        results: The study, with its confirmation.
        confirmation: The study of the confirmation's runs.
        weights: Folder of the weights of these runs.
        target: Folder to write; must be new or empty.

    Raises:
        StudyError: There is no such run, its weights are missing, or the folder is not empty.
        ModelError, MissingExtraError: As `export` does.
    """
    each, run = confirmed_run(results, confirmation)
    source = weights / str(run.number)
    if not source.is_dir():
        raise StudyError(
            f"the weights of run {run.number} of {confirmation.name!r} are not in {source}: export from the folder in "
            f"which it was confirmed, or train them again here: hpo confirm {results.name} (hpo does not save the "
            "weights of a custom objective)"
        )
    _write(results, source, target, lambda task: confirmed_card(results, each, run, task))
    return target


def confirmed_run(results: Results, confirmation: Results) -> tuple[Mapping[str, Any], FrozenTrial]:
    """Return the confirmed configuration, which is the winner or else the best, and its run of median validation score.

    The scores that the confirmation states are those of such a run. Its luckiest run would be flattered by them.

    Raises:
        StudyError: Of every configuration, a run did not complete.
    """
    found = results.confirmation or {}
    for each in found.get("configurations", []):
        if each["name"] == found["best"]:
            return each, confirmation.trials[each["median_run"]]
    raise StudyError(
        f"the confirmation of {results.name!r} has no configuration of which every run completed; see "
        f"hpo trials {confirmation.name}"
    )


def _write(results: Results, source: Path, target: Path, card_of: Callable[[str | None], str]) -> None:
    """Write weights, model card and study file into a folder, or into one for each of several tasks.

    Args:
        results: The study.
        source: The weights.
        target: The folder.
        card_of: Name of a task, or None if there is one task only -> its model card.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StudyError(f"{target} exists and is not empty; name a new folder with -o")
    try:
        tasks = results.attrs["config"].get("tasks")
        if tasks:
            _divide(source, target, tasks)
        elif (source / "adapter_config.json").is_file():
            _merge(source, target)
            shutil.copytree(source, target / "adapter")
        else:
            shutil.copytree(source, target, dirs_exist_ok=True)
        for task, folder in {name: target / name for name in tasks}.items() if tasks else [(None, target)]:
            (folder / "README.md").write_text(card_of(task), encoding="utf-8")
            yaml.write(study_file(results.attrs["config"]), folder / "study.yaml")
    except OSError as error:
        raise HpoError(f"{target} cannot be written: {error.strerror or error}; name another folder with -o") from None


def chosen(results: Results, number: int | None) -> FrozenTrial:
    """Return a completed trial; None means the best one.

    Raises:
        StudyError: There is no such trial, or it has not completed.
    """
    if number is None:
        if results.best is None:
            raise StudyError(f"there is nothing to export: {results.why_no_best}; --trial N exports another trial")
        return results.best
    trial = next((trial for trial in results.trials if trial.number == number), None)
    if trial is None:
        raise StudyError(
            f"study {results.name!r} has no trial {number}; it has {len(results.trials)}, from 0 on: "
            f"hpo trials {results.name}"
        )
    if trial not in results.complete:
        raise StudyError(
            f"trial {number} of {results.name!r} is {trial.state.name.lower()}; only a completed trial has weights: "
            f"hpo trials {results.name}"
        )
    return trial


def weights_of(results: Results, weights: Path, trial: FrozenTrial) -> Path:
    """Return the folder of a trial's saved weights.

    Raises:
        StudyError: They are missing.
    """
    source = weights / str(trial.number)
    if source.is_dir():
        return source
    if results.best is not None and trial.number == results.best.number:
        raise StudyError(
            f"the weights of trial {trial.number} are not in {source}: export from the folder in which the study ran, "
            f"or train them again here: hpo run {results.name} (hpo does not save the weights of a custom objective)"
        )
    saved = sorted(int(path.name) for path in weights.glob("*") if path.name.isdecimal() and path.is_dir())
    raise StudyError(
        f"the weights of trial {trial.number} were not saved; in {weights} are those of "
        f"{', '.join(map(str, saved)) or 'no trial'}. A study saves the weights of the published "
        "default, of the best trials within the limits, as many as `keep_best` says, and of the front with "
        "`second_metric`: raise it in a new study"
    )


def _merge(adapter: Path, target: Path) -> None:
    """Write the pretrained model with the adapter merged into its weights."""
    from hpo.finetune.lora.peft_files import merge

    merge(adapter, target)


def _divide(source: Path, target: Path, tasks: Iterable[str]) -> None:
    """Write the model of each of several tasks into a folder of its own."""
    from hpo.finetune.task_files import divide

    divide(source, target, tasks)


def with_absolute_models(
    model: str | list[str], space: Mapping[str, Any], folder: Path
) -> tuple[str | list[str], Mapping[str, Any]]:
    """Return a study's model, or models, by absolute paths, and its space with those names.

    Args:
        model: As the study has it.
        space: As `SearchSpace.to_dict` returns it.
        folder: The study file's folder.
    """
    if isinstance(model, str):
        return absolute(model, folder), space
    names = {name: absolute(name, folder) for name in model}

    def renamed(values: Any) -> Any:
        """Return names of models, alone or in a list, or a mapping with such under `model`."""
        if isinstance(values, Mapping):
            return {**values, MODEL: renamed(values[MODEL])} if MODEL in values else values
        return [names[value] for value in values] if isinstance(values, list) else names[values]

    parameters = {
        name: {**parameter, "when": renamed(parameter["when"])} if isinstance(parameter, Mapping) else parameter
        for name, parameter in space["parameters"].items()
    }
    changed = {**space, "parameters": parameters, "baseline": renamed(space["baseline"])}
    if "configurations" in space:
        changed["configurations"] = [renamed(values) for values in space["configurations"]]
    return list(names.values()), changed


def study_file(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored study as the content of a study file that runs from any folder of this machine.

    Args:
        config: The study as stored: the space is written out, and there is no storage.
    """
    folder = Path(config["folder"])
    settings = {key: value for key, value in config.items() if value is not None and key != "folder"}
    if tasks := config.get("tasks"):
        del settings["task"]
        settings["tasks"] = {
            name: {**{key: value for key, value in part.items() if value is not None},
                   "data": _with_absolute_files(part["data"], folder)}
            for name, part in tasks.items()
        }  # fmt: skip
    else:
        settings["data"] = _with_absolute_files(config["data"], folder)
    checksums = {absolute(name, folder): digest for name, digest in config["checksums"].items()}
    model, space = with_absolute_models(config["model"], config["space"], folder)
    return {**settings, "model": model, "space": space, "checksums": checksums}


def _with_absolute_files(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the keys of `data:` with the files by absolute paths."""
    data = {key: value for key, value in data.items() if value is not None}
    for split in ("train", "validation", "test") if "dataset" not in data else ():
        if isinstance(data[split], str):
            data[split] = absolute(data[split], folder)
        elif isinstance(data[split], list):
            data[split] = [absolute(name, folder) for name in data[split]]
    if "dataset" in data and locate(data["dataset"], folder) is not None:  # a copy of a data set in a folder
        data["dataset"] = absolute(data["dataset"], folder)
    return data
