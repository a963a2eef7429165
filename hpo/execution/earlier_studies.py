"""The earlier studies that a warm start is learned from: found, compared with the new study, and ranked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from hpo.config.study_spec import StudySpec
from hpo.core.differences import differences
from hpo.core.errors import StudyError
from hpo.core.formatting import plain
from hpo.search import warm_start
from hpo.search.warm_start import FEWEST, WarmStart
from hpo.storage import backends
from hpo.storage.urls import redacted

Problems = dict[str, list[str]]
"""Earlier study -> what is wrong with it."""


def learned(study: StudySpec, storage: BaseStorage, facts: Mapping[str, Any]) -> WarmStart:
    """Learn the warm start that a study file asks for.

    Args:
        study: The validated study file.
        storage: Its storage, in which earlier studies are looked up that are given by their name alone.
        facts: The facts of the study: its task is one.

    Raises:
        StudyError: An earlier study is missing, of another space, task or metric, or has too few trials. The message
            says all that is wrong with all of them.
    """
    problems: Problems = {}
    trials: dict[str, list[FrozenTrial]] = {}
    for asked in dict.fromkeys(study.config.warm_start or ()):
        earlier = _opened(asked, study.config.name, storage)
        if isinstance(earlier, str):
            problems[asked] = [earlier]
            continue
        trials[asked] = warm_start.ranked(earlier.get_trials(deepcopy=False), earlier.direction.name.lower())
        if wrong := _mismatches(study, facts, earlier):
            problems[asked] = wrong
        elif len(trials[asked]) < FEWEST:
            problems[asked] = [
                f"has {len(trials[asked])} trials that can be ranked (completed, pruned or diverged), and a warm start "
                f"needs {FEWEST}: let it run on"
            ]
    if problems:
        raise StudyError(_message(study.config.name, problems))
    return warm_start.learn(study.space, trials)


def _opened(asked: str, own: str, storage: BaseStorage) -> optuna.Study | str:
    """Return an earlier study, opened for reading, or why it cannot be.

    Args:
        asked: Its name; `STORAGE#NAME` if it is in another storage.
        own: Name of the new study.
        storage: The storage of the new study.
    """
    place, _, name = asked.rpartition("#")
    where = "this storage"
    if place:
        url = backends.choose(place)
        where = redacted(url)
        if where != url:
            return "has a password in the URL of its storage, which would be stored: put it into PGPASSWORD"
        if not backends.exists(url):
            return f"there is no storage {where}"
        storage = backends.look(url)
    elif name == own:
        return "is the study itself; a study that is run again goes on by itself"
    names = optuna.get_all_study_names(storage)
    if name not in names:
        others = sorted(other for other in names if place or other != own)
        have = f"it has {', '.join(map(plain, others))}" if others else "it has no other"
        return f"there is no study of this name in {where} ({have}); one of another storage is named STORAGE#NAME"
    return optuna.load_study(study_name=name, storage=storage)


def _mismatches(study: StudySpec, facts: Mapping[str, Any], earlier: optuna.Study) -> list[str]:
    """Return in what an earlier study differs so that its ranks tell nothing of a new one."""
    stored = earlier.user_attrs.get("config")
    if not isinstance(stored, Mapping) or not isinstance(stored.get("space"), Mapping):
        return ["has no search space stored, as its objective suggests parameters itself"]
    theirs = {
        "space": _without_priors(stored["space"]),
        "task": earlier.user_attrs.get("fingerprint", {}).get("facts", {}).get("task"),
        "metric": stored.get("metric"),
        "direction": earlier.direction.name.lower(),
    }
    ours = {
        "space": _without_priors(study.space.to_dict()),
        "task": facts.get("task"),
        "metric": study.config.metric,
        "direction": study.direction,
    }
    return [f"{path} is {_shown(old)}, here {_shown(new)}" for path, old, new in differences(theirs, ours)]


def _without_priors(space: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is searched and fixed, as stored, without what the author expects of it."""
    written = space.get("parameters", {})
    return {name: {**each, "prior": None} if isinstance(each, Mapping) else each for name, each in written.items()}


def _named(asked: str) -> str:
    """Return an earlier study as the user named it, without the secrets of a URL."""
    place, _, name = asked.rpartition("#")
    return plain(f"{redacted(backends.choose(place))}#{name}" if place else name)


def _shown(value: Any) -> str:
    return "not there" if value is None else plain(repr(value))


def _message(name: str, problems: Problems) -> str:
    lines = [f"  {_named(asked)}: {problem}" for asked, wrong in problems.items() for problem in wrong]
    return (
        f"study {name!r} cannot have this warm start, and nothing is written:\n"
        + "\n".join(lines)
        + "\nName studies of the same space, task and metric, or leave the warm start out"
    )
