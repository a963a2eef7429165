"""Which configurations are confirmed, and the runs that are planned for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from hpo.config import study_spec
from hpo.core.errors import StudyError
from hpo.core.events import Silent
from hpo.execution import confirmation, run_study
from hpo.execution.confirmation import DEFAULT, Configuration
from hpo.search.trial_seed import SEED, seed_of
from hpo.storage.snapshot import Results, read

URL = "sqlite:///hpo.db"
OBJECTIVE = """
import random

def objective(params):
    yield 1 - (params["x"] - 0.7) ** 2 + random.gauss(0, 0.01)
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> study_spec.StudySpec:
    """Return a study of a custom objective, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noisy.py").write_text(OBJECTIVE)
    raw: dict[str, Any] = {"name": "s", "objective": "noisy:objective", "trials": 6, "sampler": "random"}
    raw["pruner"] = "none"
    space = {"parameters": {"x": {"low": 0.0, "high": 1.0}}, "baseline": {"x": 0.0}}
    return study_spec.build({**raw, "space": space}, "test", tmp_path)


def searched(study: study_spec.StudySpec) -> Results:
    return read(run_study.run(study, URL).study)


def confirmed(study: study_spec.StudySpec, chosen: list[Configuration], seeds: int) -> confirmation.Confirmed:
    return confirmation.run(study, chosen, seeds, URL, Silent(), confirmation.name_of(study.config.name))


def test_the_best_configurations_come_first_and_the_published_default_last(study: study_spec.StudySpec) -> None:
    results = searched(study)
    chosen = confirmation.configurations(results, study, 3)
    ranked = sorted((t for t in results.complete if t.number), key=lambda t: -(t.value or 0))
    assert [each.trial for each in chosen] == [*(t.number for t in ranked[:3]), 0]
    assert chosen[0].name == f"trial {ranked[0].number}"
    assert chosen[0].value == ranked[0].value
    assert (chosen[-1].name, dict(chosen[-1].params)) == (DEFAULT, {"x": 0.0})


def test_repetitions_share_seeds_across_configurations_and_are_not_those_of_the_search(
    study: study_spec.StudySpec,
) -> None:
    chosen = confirmation.configurations(searched(study), study, 2)
    runs = confirmed(study, chosen, 3).runs
    seeds = [[seed_of(study.config.seed, run) for run in each] for each in runs]
    assert seeds[0] == seeds[1] == seeds[2]
    assert len(set(seeds[0])) == 3
    assert not set(seeds[0]) & {seed_of(study.config.seed, run) for run in searched(study).trials}
    assert [[run.params for run in each] for each in runs] == [[dict(each.params)] * 3 for each in chosen]


def test_equal_parameters_with_different_seeds_are_trained_each(study: study_spec.StudySpec) -> None:
    chosen = confirmation.configurations(searched(study), study, 1)
    (first, _) = confirmed(study, chosen, 4).runs
    assert len({run.value for run in first}) == 4
    assert all("duplicate_of" not in run.user_attrs for run in first)


def test_what_has_run_is_not_run_again_and_more_seeds_or_configurations_are_added(
    study: study_spec.StudySpec,
) -> None:
    results = searched(study)

    def values(top: int, seeds: int) -> list[list[float | None]]:
        chosen = confirmation.configurations(results, study, top)
        return [[run.value for run in each] for each in confirmed(study, chosen, seeds).runs]

    first = values(1, 3)
    assert values(1, 3) == first
    more = values(1, 5)
    assert [each[:3] for each in more] == first
    wider = values(2, 3)
    assert [wider[0], wider[2]] == first
    stored = optuna.load_study(study_name="s.confirm", storage=URL).get_trials()
    assert len(stored) == 5 + 5 + 3
    assert len({(run.params["x"], run.system_attrs[SEED]) for run in stored}) == len(stored)


def test_a_study_without_a_default_is_confirmed_without_one(study: study_spec.StudySpec) -> None:
    raw = study.to_dict() | {"space": {"x": {"low": 0.0, "high": 1.0}}, "name": "bare"}
    bare = study_spec.from_dict(raw)
    assert [each.trial is None for each in confirmation.configurations(searched(bare), bare, 2)] == [False, False]


def test_too_few_configurations_are_an_error_and_nothing_is_written(study: study_spec.StudySpec) -> None:
    results = searched(study)
    with pytest.raises(StudyError, match=r"has 5 completed configurations besides .*; write --top 5, or run more"):
        confirmation.configurations(results, study, 6)
    empty = Results("s", "maximize", (), results.attrs)
    with pytest.raises(StudyError, match=r"nothing of 's' can be confirmed: no trial of s has completed; run it"):
        confirmation.configurations(empty, study, 1)
    assert optuna.get_all_study_names(URL) == ["s"]


def test_an_objective_that_has_changed_is_refused_and_nothing_is_written(study: study_spec.StudySpec) -> None:
    chosen = confirmation.configurations(searched(study), study, 1)
    Path("noisy.py").write_text(OBJECTIVE.replace("0.7", "0.2"))
    with pytest.raises(StudyError, match="hash of its source"):
        confirmed(study, chosen, 3)
    assert optuna.get_all_study_names(URL) == ["s"]


def test_a_confirmation_that_was_begun_with_other_versions_says_how_to_begin_anew(
    study: study_spec.StudySpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = confirmation.configurations(searched(study), study, 1)
    confirmed(study, chosen, 3)
    opened = optuna.load_study(study_name="s.confirm", storage=URL)
    before = opened.user_attrs["fingerprint"]
    opened.set_user_attr("fingerprint", {**before, "facts": {**before["facts"], "torch": "1.0"}})
    with pytest.raises(StudyError, match=r"torch: was '1.0'.*\n.*optuna delete-study --study-name s.confirm") as raised:
        confirmed(study, chosen, 4)
    assert "--set" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("s.confirm", "is the confirmation of 's': hpo confirm s goes on with it"), ("n" * 97, "has 105 characters")],
)
def test_names_that_cannot_be_confirmed(name: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        confirmation.name_of(name)
