"""The command `hpo compare --samplers`: runs a study with several samplers, and says how they compare at equal cost."""

from __future__ import annotations

from collections.abc import Sequence

from hpo.analysis import sampler_page
from hpo.analysis.sampler_comparison import compare_samplers, sentences, tables
from hpo.analysis.verdict_text import as_text
from hpo.cli.locate_study import study_to_run
from hpo.cli.run_commands import Outcome, end_process
from hpo.core.errors import StudyError
from hpo.core.events import Observer
from hpo.execution import sampler_studies
from hpo.execution.study_setup import folder_of
from hpo.storage import backends
from hpo.storage.snapshot import Results, read
from hpo.storage.snapshot_json import finite_json


def compare(
    name: str, storage_flag: str | None, sets: Sequence[str], given: str, seeds: int, watch: Observer
) -> Outcome:
    """Compare samplers on a study; a comparison that was interrupted goes on.

    Args:
        name: A study file, or the name of a study in the storage.
        storage_flag: `--storage`, if given.
        sets: `key=value` overrides.
        given: Names of samplers, separated by commas.
        seeds: Repetitions of each.
        watch: Observes the runs.

    Raises:
        StudyError: There are fewer than two samplers; nothing has been written.
        HpoError: The study, its data or its model is not as its file says.
    """
    samplers = list(dict.fromkeys(filter(None, map(str.strip, given.split(",")))))
    if len(samplers) < 2:
        raise StudyError(f"--samplers {given}: write two samplers or more with commas between, e.g. random,tpe,auto")
    study, url = study_to_run(name, storage_flag, sets, {})
    backends.refuse(url)
    studies = sampler_studies.planned(study, samplers, seeds)
    if backends.exists(url):
        sampler_studies.refuse_others(studies, backends.look(url))
    found: dict[str, list[Results]] = {sampler: [] for sampler in samplers}
    for each, opened, failure in sampler_studies.run_all(studies, url, watch, end_process):
        if failure is not None:
            return Outcome(f"{each.name}: {failure}; nothing is compared", {"failed": each.name}, True)
        found[each.sampler].append(read(opened))
    shown = compare_samplers(found)
    written = sampler_page.write(shown, study.config.name, folder_of(study.config.name) / "samplers.html")
    lines = [*sentences(shown), *map(as_text, tables(shown)), f"page: {written}"]
    return Outcome("\n".join(lines), finite_json(shown))
