"""The studies of a comparison of samplers: one for each sampler and repetition, otherwise of the same study file.

Each is a study of its own in the same storage: `<study>.<sampler>`, from the second repetition on
`<study>.<sampler>.<repetition>`. Repetition i has the same seed for every sampler. Then the same rows are set aside,
and trials of equal number and parameters train alike, so that differences are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import optuna
from optuna.storages import BaseStorage

from hpo.config import study_spec
from hpo.config.schema import NAME
from hpo.config.study_spec import StudySpec
from hpo.core.errors import ConfigError, Problem, StudyError
from hpo.core.events import Observer
from hpo.core.trainer import TrialArray
from hpo.execution import side_study
from hpo.execution.processes import joined
from hpo.execution.run_study import run
from hpo.execution.trial_arrays import open_array
from hpo.search.plugins import name_and_arguments

SEARCH = ("sampler", "pruner", "prune_on")
"""Settings that any study may change when it goes on, and a study of a comparison may not."""


@dataclass(frozen=True)
class SamplerStudy:
    """A study of a comparison.

    Attributes:
        sampler: Name of its sampler.
        repetition: From 1 on.
        study: Its study file.
    """

    sampler: str
    repetition: int
    study: StudySpec

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.study.config.name


# ---------------------------------------------------------------- which studies


def planned(study: StudySpec, samplers: Sequence[str], seeds: int) -> list[SamplerStudy]:
    """Return the studies of a comparison, repetition by repetition.

    The study's own sampler keeps its arguments. The other samplers have their defaults.

    Args:
        study: The study file whose samplers are compared.
        samplers: Names of samplers, each once.
        seeds: Number of repetitions. Their seeds are the study's own and those that follow it.

    Raises:
        ConfigError: Samplers are unknown, or cannot draw from the space; all of them are named.
        StudyError: The study is a side study, or leaves no room for the names.
    """
    side_study.refuse(study.config.name)
    files, problems = {}, []
    for sampler in samplers:
        try:
            files[sampler] = _with(study, sampler)
        except ConfigError as error:
            problems += [Problem((sampler, *each.path), each.message) for each in error.problems]
    if problems:
        raise ConfigError("--samplers", problems)
    found = [
        SamplerStudy(sampler, repetition, _repeated(file, repetition))
        for repetition in range(1, seeds + 1)
        for sampler, file in files.items()
    ]
    if long := [each.name for each in found if not NAME.fullmatch(each.name)]:
        raise StudyError(
            f"{len(long)} studies of the comparison would have a name that is too long, e.g. {long[0]!r} with "
            f"{len(long[0])} characters, and a study's name has at most 100; shorten it: --set name=..."
        )
    return found


def _with(study: StudySpec, sampler: str) -> StudySpec:
    """Return a study file with another sampler and its name, checked."""
    own = study.config.sampler
    setting = own if name_and_arguments(own)[0] == sampler else sampler
    changed = study_spec.from_dict(study.to_dict(), {"sampler": setting})
    return _changed(changed, name=f"{study.config.name}.{sampler}")


def _repeated(study: StudySpec, repetition: int) -> StudySpec:
    config = study.config
    if repetition == 1:
        return study
    return _changed(study, name=f"{config.name}.{repetition}", seed=(config.seed + repetition - 1) % 2**32)


def _changed(study: StudySpec, **changes: object) -> StudySpec:
    return replace(study, config=study.config.model_copy(update=changes))


def refuse_others(studies: Sequence[SamplerStudy], storage: BaseStorage) -> None:
    """Refuse to go on with studies that have the names of a comparison and search otherwise.

    Raises:
        StudyError: There are such studies; all that differs is said.
    """
    there = set(optuna.get_all_study_names(storage))
    wrong = []
    for each in studies:
        if each.name in there:
            stored = optuna.load_study(study_name=each.name, storage=storage).user_attrs.get("config", {})
            asked = each.study.to_dict()
            wrong += [
                f"  {each.name}: {key} is {stored[key]!r} there, and {asked[key]!r} in this comparison"
                for key in SEARCH
                if key in stored and stored[key] != asked[key]
            ]
    if wrong:
        raise StudyError(
            f"the storage has studies that search otherwise than this comparison ({len(wrong)} settings):\n"
            + "\n".join(wrong)
            + "\nChange the study file back, or compare under another name: --set name=..."
        )


# ---------------------------------------------------------------- running


def run_all(
    studies: Sequence[SamplerStudy], url: str, watch: Observer, end: Callable[[], None]
) -> Iterator[tuple[SamplerStudy, optuna.Study, str | None]]:
    """Run the studies of a comparison one after the other, as far as that has not been done.

    The studies of a repetition share what they have in common: the data and the model are read once, what frozen layers
    yield is computed once, and where the number of slots is measured, it is measured once.

    Args:
        studies: The studies, as `planned` returns them.
        url: URL of the storage.
        watch: Told of all events.
        end: Ends this process when `hpo stop` asks the processes of the running study to end.

    Yields:
        A study, as it was planned and as it is after its run; and why it was stopped, if its trials failed in a row.

    Raises:
        HpoError: The data, the model, the storage or a study is not as the file says.
    """
    array: TrialArray | None = None
    repetition = 0
    for each in studies:
        study = each.study
        if array is None or each.repetition != repetition:
            array = None  # two would need the memory of two
            array, repetition = open_array(study), each.repetition
        elif study.config.slots == "auto":
            study = _changed(study, slots=array.slots)
        with joined(url, each.name, end):
            opened, failure = _run(study, url, watch, array)
        yield each, opened, failure


def _run(study: StudySpec, url: str, watch: Observer, array: TrialArray) -> tuple[optuna.Study, str | None]:
    done = run(study, url, watch, array=array)
    array.notes = ()  # they have been said
    return done.study, done.stopped if done.failed else None
