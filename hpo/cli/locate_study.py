"""Finds the study that a command names: a study file, a study that comes with hpo, or a study in a storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from hpo.config import study_spec, yaml
from hpo.core.errors import ConfigError, Problem, StudyError, nearest
from hpo.execution.study_setup import load_by_name
from hpo.storage import backends
from hpo.storage.snapshot import Results, attrs_of, read
from hpo.storage.urls import redacted

optuna.logging.set_verbosity(optuna.logging.WARNING)  # the commands print what matters themselves


def study_to_run(
    name: str, storage_flag: str | None, sets: Sequence[str], flags: Mapping[str, Any]
) -> tuple[study_spec.StudySpec, str]:
    """Return the validated study that a name or path means, and the URL of its storage.

    Args:
        name: Path of a study file, name of one in `studies/`, or name of a study in the storage.
        storage_flag: `--storage`, if given.
        sets: `key=value` overrides.
        flags: Other settings from the command line; None means not given.
    """
    overrides = values_of("--set", sets, "data.rows=500") | {
        key: value for key, value in flags.items() if value is not None
    }
    path = study_spec.find(name, "studies")
    if path is not None:
        study = study_spec.load(path, overrides, look=True)
        return study, backends.choose(storage_flag, study.config.storage)
    _refuse_missing_file(name)
    url = backends.choose(storage_flag)
    files = sorted(str(path) for path in Path().glob("*.y*ml"))
    hint = f"Name a study file{nearest(name, [*files, *_shipped()])}"
    stored = attrs_of(load_stored(name, url, hint)).get("config")
    if stored is None or _is_from_script(stored.get("objective")):
        raise StudyError(
            f"study {name!r} in {redacted(url)} was made by a script, not from a study file: "
            "run the script again to go on"
        )
    return study_spec.from_dict(stored, overrides, look=True), url


def results_of(name: str, storage_flag: str | None) -> Results:
    """Return a snapshot of a study, by file or name."""
    return read(load_stored(*locate(name, storage_flag)))


def locate(name: str, storage_flag: str | None) -> tuple[str, str]:
    """Return the name of a study that has been run, and the URL of its storage."""
    path = study_spec.find(name, "studies")
    if path is None:
        _refuse_missing_file(name)
        return name, backends.choose(storage_flag)
    raw, _ = yaml.read(path)
    url = raw.get("storage")
    return str(raw.get("name", path.stem)), backends.choose(storage_flag, None if url is None else str(url))


def load_stored(name: str, url: str, hint: str = "Run it first: hpo run FILE", *, writes: bool = False) -> optuna.Study:
    """Return a study of a storage, opened for reading or, if `writes`, for both.

    Raises:
        StudyError: There is no such storage, or no such study in it; the message ends with the hint.
    """
    if not backends.exists(url):
        raise StudyError(
            f"no study {name!r}: there is no storage {redacted(url)} yet. Name the right one with --storage. {hint}"
        )
    return load_by_name(name, (backends.connect if writes else backends.look)(url), redacted(url), hint)


def existing_storage(storage_flag: str | None) -> str:
    """Return the URL of the storage, which must exist.

    Raises:
        StudyError: It does not.
    """
    url = backends.choose(storage_flag)
    if not backends.exists(url):
        raise StudyError(f"there is no storage {redacted(url)} yet; run a study first: hpo run quickstart")
    return url


def _is_from_script(objective: Any) -> bool:
    """Return whether a stored objective cannot be imported: a function of a script, a lambda, an object."""
    module, _, attribute = str(objective or "module:name").partition(":")
    return module == "__main__" or not attribute.isidentifier()


def values_of(source: str, items: Sequence[str], example: str) -> dict[str, Any]:
    """Return `key=value` items as a mapping, the values read as YAML.

    Args:
        source: What was given them, for the error.
        items: The items.
        example: One that is right, for the error.

    Raises:
        ConfigError: Items are not of this form.
    """
    malformed = [item for item in items if "=" not in item or item.startswith("=")]
    if malformed:
        raise ConfigError(source, [Problem((item,), f"must be KEY=VALUE, e.g. {example}") for item in malformed])
    return {key.strip(): yaml.scalar(value) for key, _, value in (item.partition("=") for item in items)}


def _refuse_missing_file(name: str) -> None:
    if Path(name).suffix in (".yaml", ".yml"):
        raise StudyError(f"there is no study file {name}; studies that come with hpo: {', '.join(_shipped())}")


def _shipped() -> list[str]:
    """Return the names of the studies that come with hpo."""
    return sorted(path.stem for path in study_spec.shipped("studies").glob("*.yaml"))
