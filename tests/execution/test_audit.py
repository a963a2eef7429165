"""Which pruned trials are audited, and what becomes of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import optuna
import pytest
import tiny
from optuna.trial import TrialState

from hpo.analysis.audit import take_audit
from hpo.cli.audit import audit as command
from hpo.cli.run_commands import run as run_command
from hpo.cli.study_text import study_facts, study_text
from hpo.config import study_spec
from hpo.core.errors import StudyError
from hpo.core.events import Silent
from hpo.execution import audit, run_study, side_study
from hpo.execution.audit import AUDITS
from hpo.search.trial_seed import seed_of
from hpo.storage.snapshot import Results, read

URL = "sqlite:///hpo.db"
OBJECTIVE = """
import random

def objective(params):
    noise = random.Random(str(params["x"]))
    for step in range(1, 5):
        yield 1 - (params["x"] - 0.7) ** 2 + noise.gauss(0, 0.05 / step)
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> study_spec.StudySpec:
    """Return a study of a custom objective that prunes, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noisy.py").write_text(OBJECTIVE)
    raw: dict[str, Any] = {"name": "s", "objective": "noisy:objective", "trials": 12, "sampler": "random"}
    raw |= {"pruner": {"name": "asha", "reduction_factor": 2}, "storage": URL, "stop": {"target": 2.0}}
    (tmp_path / "s.yaml").write_text(json.dumps({**raw, "space": {"x": {"low": 0.0, "high": 1.0}}}))
    return study_spec.load(tmp_path / "s.yaml")


def searched(study: study_spec.StudySpec) -> Results:
    return read(run_study.run(study, URL).study)


def run(study: study_spec.StudySpec, results: Results, count: int) -> side_study.Ran:
    return audit.run(study, audit.sample(results, study.config.seed, count), URL, Silent(), "s.audit")


def test_a_pruned_trial_is_what_it_would_have_become(study: study_spec.StudySpec) -> None:
    results = searched(study)
    whole = run_study.run(study_spec.from_dict({**study.to_dict(), "name": "whole", "pruner": "none"}), URL).study
    ran = run(study, results, 4)
    assert len(ran.trials) == 4
    for trial in ran.trials:
        number = trial.user_attrs[AUDITS]
        assert results.trials[number].state == TrialState.PRUNED
        assert trial.state == TrialState.COMPLETE
        assert (trial.params, trial.value) == (whole.trials[number].params, whole.trials[number].value)
        assert seed_of(0, trial) == seed_of(0, results.trials[number])
        begun = results.trials[number].intermediate_values
        assert begun.items() <= trial.intermediate_values.items()


def test_the_search_does_not_see_them(study: study_spec.StudySpec) -> None:
    results = searched(study)
    run(study, results, 3)
    after = read(optuna.load_study(study_name="s", storage=URL))
    assert [(t.number, t.state, t.value) for t in after.trials] == [
        (t.number, t.state, t.value) for t in results.trials
    ]


def test_a_larger_sample_has_the_smaller_one_and_trains_the_rest_only(study: study_spec.StudySpec) -> None:
    results = searched(study)
    small = [trial.number for trial in audit.sample(results, 0, 2)]
    assert [trial.number for trial in audit.sample(results, 0, 3)][:2] == small
    first = [trial.value for trial in run(study, results, 2).trials]
    assert [trial.value for trial in run(study, results, 3).trials][:2] == first
    assert len(optuna.load_study(study_name="s.audit", storage=URL).trials) == 3


def test_a_sample_is_random_and_all_that_there_are_if_they_are_few(study: study_spec.StudySpec) -> None:
    results = searched(study)
    pruned = [trial.number for trial in audit.prunable(results)]
    orders = {tuple(trial.number for trial in audit.sample(results, seed, 100)) for seed in range(20)}
    assert {tuple(sorted(order)) for order in orders} == {tuple(pruned)}
    assert len(orders) > 15


def test_what_cannot_be_audited_is_said_and_nothing_is_written(study: study_spec.StudySpec) -> None:
    unpruned = searched(study_spec.from_dict({**study.to_dict(), "name": "n", "pruner": "none", "trials": 2}))
    with pytest.raises(StudyError, match=r"'n' has no trial that the pruner ended: there is nothing to audit"):
        audit.sample(unpruned, 0, 3)
    with pytest.raises(StudyError, match="has no completed trial to compare with; run it on: hpo run s"):
        audit.sample(Results("s", "maximize", (), {}), 0, 3)
    with pytest.raises(StudyError, match=r"'s.audit' is the audit of 's': hpo audit s goes on with it"):
        side_study.name_of("s.audit", "audit")
    with pytest.raises(StudyError, match=r"can have no audit: .* has 106 characters"):
        side_study.name_of("n" * 100, "audit")
    assert optuna.get_all_study_names(URL) == ["n"]


def test_the_command_stores_what_show_and_the_report_say(study: study_spec.StudySpec) -> None:
    run_command(study, URL, Silent())
    outcome = command("s.yaml", None, 3, Silent())
    results = read(optuna.load_study(study_name="s", storage=URL))
    assert results.audit == outcome.json
    assert outcome.json["beaten"] <= outcome.json["at_most"] <= outcome.json["pruned"]
    first = outcome.text.splitlines()[0]
    assert first.startswith("Audit of the pruner, when 12 trials had ended: 3 of the ")
    assert first in study_text(results)
    assert study_facts(results)["audit"] == outcome.json
    page = Path("runs/s/report.html").read_text()
    assert re.search(r"<h2>Audit of the pruner</h2>", page)
    beside = read(optuna.load_study(study_name="s.audit", storage=URL))
    assert "the runs of the audit of s; hpo show s says what it shows" in study_text(beside)


def test_a_real_model_repeats_the_search_to_the_bit_and_learns_from_earlier_studies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = tiny.study(tmp_path, trials=6, baseline=False, pruner={"name": "asha", "reduction_factor": 3})
    early = study_spec.build(raw, "test", tmp_path)
    results = read(run_study.run(early, URL).study)
    runs = audit.run(early, audit.sample(results, 0, 2), URL, Silent(), "tiny.audit").trials
    found = take_audit(optuna.load_study(study_name="tiny", storage=URL), results, "tiny.audit", runs)
    assert found["repeated"] == len(runs) == 2
    warm = {**raw, "name": "late", "trials": 1, "warm_start": ["tiny"]}
    late = run_study.run(study_spec.build(warm, "test", tmp_path), URL).study
    best = results.best
    assert best is not None
    assert late.trials[0].params == best.params
    other = study_spec.build({**warm, "name": "other", "metric": "f1_macro"}, "test", tmp_path)
    with pytest.raises(StudyError, match="tiny: metric is 'accuracy', here 'f1_macro'"):
        run_study.run(other, URL)
