"""Open a study: create or resume it, refuse one whose settings have changed, and plan its trials.

All trials of the budget are stored at the start as WAITING: the published default first, then the points of a grid, or
trials whose parameters the sampler draws when they start.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from hpo.config.schema import NAME, RESUMABLE
from hpo.config.study_spec import StudySpec
from hpo.core.differences import differences
from hpo.core.errors import StudyError
from hpo.core.formatting import plain
from hpo.core.seeds import derived_seed
from hpo.search import auto, samplers, warm_start
from hpo.search.plugins import name_and_arguments
from hpo.search.trial_marks import is_added
from hpo.search.warm_start import WarmStart
from hpo.space.search_space import Params
from hpo.storage.trial_writers import writer_of

DEFAULT_TRIALS = 20

SOURCE = "objective_source"
"""Fact of a study: the digest of its custom objective's source."""

EXPLANATIONS = {
    "data": " (a hash of all rows: a file has changed, or which rows are set aside)",
    SOURCE: " (a hash of its source: it has been edited, or is another file's)",
}
"""Setting or fact whose value is a digest -> what the error adds to it."""

OBJECTIVE_HINT = (
    " (hpo.optimize: name=...). If the edit changes no score, go on once with --set same_objective=true "
    "(hpo.optimize: same_objective=True)"
)


def folder_of(name: str) -> Path:
    """Return the folder of a study's files, `runs/<study>` in the working folder.

    Raises:
        StudyError: The name is not one of this program's, and the path might be outside `runs/`.
    """
    if not NAME.fullmatch(name):
        raise StudyError(f"study {name!r} can have no folder runs/{plain(name)}; name another place with -o")
    return Path("runs") / name


# ---------------------------------------------------------------- opening


def stored_facts(name: str, storage: BaseStorage) -> Mapping[str, Any]:
    """Return the facts of a study: what its results depend on besides its file; empty if it is not in the storage."""
    if name not in optuna.get_all_study_names(storage):
        return {}
    opened = optuna.load_study(study_name=name, storage=storage)
    facts: Mapping[str, Any] = opened.user_attrs.get("fingerprint", {}).get("facts", {})
    return facts


def open_study(
    study: StudySpec, storage: BaseStorage, facts: Mapping[str, Any], start: WarmStart | None = None
) -> optuna.Study:
    """Create the study, or resume the one of that name.

    Args:
        study: The validated study file.
        storage: The storage.
        facts: What the results depend on besides the file: data, weights, precision, versions.
        start: The warm start of a study that is begun with one.

    Raises:
        StudyError: The study of that name has other settings or facts, or another warm start.
    """
    name = study.config.name
    fingerprint = _fingerprint(study, facts)
    if name not in optuna.get_all_study_names(storage):
        opened = optuna.create_study(storage=storage, study_name=name, direction=study.direction)
        opened.set_user_attr("fingerprint", fingerprint)
        opened.set_user_attr("config", study.to_dict())
    opened = _loaded(study, storage)
    _refuse_changes(opened, fingerprint, study.config.same_objective)
    if start is not None:
        opened.set_user_attr(warm_start.STORED, start.model_dump(mode="json"))
    _refuse_another_start(opened, study)
    if _is_auto(study) and _stored_choice(opened, study) is None:
        opened.set_user_attr(auto.CHOICE, {"asked": _asked(study), "chosen": _chosen(study).to_dict()})
    opened.sampler = sampler_of(as_chosen(study, opened))
    return opened


def resumed(study: StudySpec, storage: BaseStorage, facts: Mapping[str, Any]) -> optuna.Study | None:
    """Return the study if it is in the storage with all its trials; None if it has to be created or completed.

    Raises:
        StudyError: The study of that name has other settings or facts.
    """
    if study.config.name not in optuna.get_all_study_names(storage):
        return None
    opened = _loaded(study, storage)
    if "fingerprint" not in opened.user_attrs:
        return None
    _refuse_changes(opened, _fingerprint(study, facts), study.config.same_objective)
    _refuse_another_start(opened, study)
    if _is_auto(study) and _stored_choice(opened, study) is None:
        return None
    opened.sampler = sampler_of(as_chosen(study, opened))
    return None if _missing_trials(opened, as_chosen(study, opened)) else opened


def _loaded(study: StudySpec, storage: BaseStorage) -> optuna.Study:
    """Return the study with a sampler and a pruner that are to be replaced."""
    sampler, pruner = optuna.samplers.RandomSampler(), optuna.pruners.NopPruner()
    return optuna.load_study(study_name=study.config.name, storage=storage, sampler=sampler, pruner=pruner)


# ---------------------------------------------------------------- what was chosen and learned when it began


def lacks_start(study: StudySpec, storage: BaseStorage) -> bool:
    """Return whether a study's warm start has still to be learned: it is stored before the first trial is planned."""
    if not study.config.warm_start:
        return False
    if study.config.name not in optuna.get_all_study_names(storage):
        return True
    opened = _loaded(study, storage)
    return warm_start.stored_in(opened.user_attrs) is None and not opened.get_trials(deepcopy=False)


def _refuse_another_start(opened: optuna.Study, study: StudySpec) -> None:
    """Refuse a warm start from other studies than the one that is stored, from which trials are drawn."""
    start, asked = warm_start.stored_in(opened.user_attrs), study.config.warm_start
    if not asked or asked == (start and start.asked) or not opened.get_trials(deepcopy=False):
        return
    name, begun = study.config.name, "a warm start from " + ", ".join(start.asked) if start else "no warm start"
    raise StudyError(
        f"study {name!r} was begun with {begun}, not with one from {', '.join(asked)}: leave the warm start out to go "
        f"on with it, or begin a new study with --set name={name}-2"
    )


def as_chosen(study: StudySpec, opened: optuna.Study | None = None) -> StudySpec:
    """Return a study with what was chosen for it in place of `auto`, and with the warm start that it was begun with.

    Args:
        study: The validated study file.
        opened: The study, with which both are stored; None chooses as for a new study.
    """
    if opened is not None and (start := warm_start.stored_in(opened.user_attrs)) is not None:
        study = replace(study, space=start.applied(study.space))
    if not _is_auto(study):
        return study
    choice = (opened and _stored_choice(opened, study)) or _chosen(study)
    return replace(study, config=study.config.model_copy(update=choice.to_dict()))


def _is_auto(study: StudySpec) -> bool:
    return auto.is_auto(study.config.sampler) or auto.is_auto(study.config.pruner)


def _asked(study: StudySpec) -> dict[str, Any]:
    """Return the settings for which a choice is made."""
    return {"sampler": study.config.sampler, "pruner": study.config.pruner}


def _stored_choice(opened: optuna.Study, study: StudySpec) -> auto.Choice | None:
    """Return the choice that is stored with a study; None if there is none for these settings."""
    stored = opened.user_attrs.get(auto.CHOICE, {})
    return auto.Choice(**stored["chosen"]) if stored.get("asked") == _asked(study) else None


def _chosen(study: StudySpec) -> auto.Choice:
    config = study.config
    trials = config.trials or DEFAULT_TRIALS
    return auto.choose(config.sampler, config.pruner, config.round_size, trials, study.space.size)


def _fingerprint(study: StudySpec, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings and facts that values depend on, as a storage returns them (through JSON)."""
    found: dict[str, Any] = json.loads(json.dumps({"settings": _settings(study), "facts": dict(facts)}))
    return found


def store_config(opened: optuna.Study, study: StudySpec) -> list[str]:
    """Store the study file that the next trials run by; if all have ended, its criteria, by which the best is chosen.

    Returns:
        A sentence for each setting of the search that differs from the one of the ended trials.
    """
    rows = opened.get_trials(deepcopy=False)
    before, now = opened.user_attrs.get("config", {}), study.to_dict()
    if all(row.state.is_finished() for row in rows):
        asked = study.criteria.to_dict()
        now = before | asked if before and any(before.get(key) != asked[key] for key in asked) else before
    if before != now:
        opened.set_user_attr("config", now)
    ended = sum(row.state.is_finished() for row in rows)
    return [
        f"{key}: was {json.dumps(before[key])} for the {ended} trials that have ended, is now {json.dumps(now[key])}"
        for key in ("sampler", "pruner", "prune_on", "limits", "second_metric")
        if ended and before.get(key, now.get(key)) != now.get(key)
    ]


def sampler_of(study: StudySpec) -> samplers.TrialSeededSampler:
    """Return the study's sampler, which has a seed for each trial."""
    return samplers.TrialSeededSampler(*name_and_arguments(study.config.sampler), study.space, study.config.seed)


def _settings(study: StudySpec) -> dict[str, Any]:
    """Return the settings of the file that values depend on."""
    settings = study.to_dict()
    return {k: v for k, v in settings.items() if k not in RESUMABLE and k not in ("folder", "name", "checksums")}


def refuse_another_objective(opened: optuna.Study, now: Mapping[str, Any], accept: bool) -> None:
    """Refuse a study whose trials are of another objective; with a new study, store the objective.

    Args:
        opened: A study without a space, which Optuna runs.
        now: `{"objective": name, "objective_source": digest}`, the latter only if it is known.
        accept: Whether another objective is accepted.

    Raises:
        StudyError: The study is of another objective.
    """
    fingerprint = {
        "settings": {"objective": now["objective"]},
        "facts": {key: value for key, value in now.items() if key != "objective"},
    }
    if "fingerprint" in opened.user_attrs:
        _refuse_changes(opened, fingerprint, accept)
    else:
        opened.set_user_attr("fingerprint", fingerprint)


def _refuse_changes(opened: optuna.Study, now: Mapping[str, Any], same_objective: bool) -> None:
    before = opened.user_attrs.get("fingerprint")
    name = opened.study_name
    if before is None and not opened.get_trials(deepcopy=False):  # killed just after it created the study
        opened.set_user_attr("fingerprint", now)
        return
    if before is None:
        raise StudyError(
            f"the storage has a study {name!r} that hpo did not create; choose another name with --set name=..."
        )
    differ = {path: (old, new) for path, old, new in differences(before, now)}
    source_missing = SOURCE in differ and differ[SOURCE][0] is None
    if None in differ.get(SOURCE, ()):  # an earlier version stored no source, or it cannot be read here
        del differ[SOURCE]
    own = differ.keys() & {"objective", SOURCE}
    if same_objective:
        differ = {path: change for path, change in differ.items() if path not in own}
    if differ:
        raise StudyError(
            f"study {name!r} was begun with other settings, so its trials would not compare:\n"
            + "\n".join(
                f"  {path}: was {old!r}, is {new!r}{EXPLANATIONS.get(path, '')}" for path, (old, new) in differ.items()
            )
            + f"\nChange them back, or begin a new study with --set name={name}-2"
            + (OBJECTIVE_HINT if own == differ.keys() else "")
        )
    if own or source_missing:
        opened.set_user_attr("fingerprint", now)


def load_by_name(name: str, storage: BaseStorage, where: str, hint: str = "Run it first: hpo run FILE") -> optuna.Study:
    """Return a study of the storage by its name.

    Raises:
        StudyError: There is none of that name.
    """
    names = optuna.get_all_study_names(storage)
    if name not in names:
        have = f"it has {', '.join(sorted(names))}" if names else "it has none"
        raise StudyError(f"no study {name!r} in {where} ({have}). {hint}")
    return optuna.load_study(study_name=name, storage=storage)


# ---------------------------------------------------------------- planning trials


def planned_rows(study: StudySpec) -> tuple[list[tuple[Params, dict[str, Any]]], int]:
    """Return the trials to plan, in order, as (parameters, attributes), and the budget.

    The published default is first, then the published configurations of the space.

    Without parameters, the sampler draws them when the trial starts. A finite space is planned with no more trials than
    it has points.
    """
    study = as_chosen(study)
    space, config = study.space, study.config
    rows: list[tuple[Params, dict[str, Any]]] = []
    if config.baseline and space.baseline:
        moved = {name: list(pair) for name, pair in space.moved_baseline().items()}
        rows.append((space.first_trial(), {"baseline": True} | ({"moved": moved} if moved else {})))
    known = [params for params, _ in rows]
    rows += [(point, {}) for point in _different(space.first_configurations()) if point not in known]
    points = space.grid() if name_and_arguments(config.sampler)[0] == "grid" else None
    if points is not None:
        first = [params for params, _ in rows]
        rest = [point for point in points if point not in first]
        budget = config.trials or len(rows) + len(rest)
        order = np.random.default_rng(derived_seed(config.seed, "grid")).permutation(len(rest))
        rows += [(rest[i], {}) for i in order[: budget - len(rows)].tolist()]  # a larger budget adds to these
        return rows[:budget], budget
    budget = config.trials or DEFAULT_TRIALS
    outside = sum(not space.contains(params) for params, _ in rows)
    wanted = int(min(budget, space.size + outside))
    rows += [({}, {})] * (wanted - len(rows))
    return rows[:budget], budget


def _different(points: Sequence[Params]) -> list[Params]:
    """Return points without those that are there before, in order."""
    return [point for index, point in enumerate(points) if point not in points[:index]]


def plan(opened: optuna.Study, study: StudySpec) -> int:
    """Add the planned trials that are not in the storage yet, and return the budget."""
    if missing := _missing_trials(opened, study):
        writer_of(opened._storage).add(opened._study_id, missing)
    return planned_rows(study)[1]


def _missing_trials(opened: optuna.Study, study: StudySpec) -> list[FrozenTrial]:
    """Return the planned trials that are not in the storage yet."""
    rows, _ = planned_rows(study)
    there = [row for row in opened.get_trials(deepcopy=False) if not is_added(row)]
    if len(there) >= len(rows):
        return []
    wanted = {frozenset(params.items()) for params, _ in rows if params}
    known = (row.params or row.system_attrs.get("fixed_params", {}) for row in there) if wanted else ()
    present = {each for params in known if (each := frozenset(params.items())) in wanted}
    new = [(params, attrs) for params, attrs in rows if not params or frozenset(params.items()) not in present]
    return [
        optuna.create_trial(state=TrialState.WAITING, user_attrs=attrs, system_attrs={"fixed_params": params})
        for params, attrs in new[: len(rows) - len(there)]
    ]
