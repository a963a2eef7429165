"""Studies with a warm start: begun, resumed, killed, refused."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from hpo.analysis import preflight
from hpo.config import study_spec
from hpo.core.errors import StudyError
from hpo.core.events import Silent
from hpo.execution import run_study
from hpo.search.samplers import DRAWN_BY, PRIOR, RANDOM

URL = "sqlite:///hpo.db"
OBJECTIVE = """
import os, signal
from pathlib import Path

def objective(params):
    if Path("kill").exists():
        left = int(Path("kill").read_text()) - 1
        Path("kill").write_text(str(left))
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    yield 1 - (params["x"] - 0.7) ** 2
    yield 1 - (params["x"] - 0.7) ** 2
"""
SPACE = {"x": {"low": 0.0, "high": 1.0}, "kind": ["a", "b"]}
RUN = """
from hpo.config import study_spec
from hpo.execution import run_study
from hpo.search.samplers import DRAWN_BY, PRIOR, RANDOM
from pathlib import Path
import sys
raw = {raw!r}
run_study.run(study_spec.build(raw, "test", Path()), {url!r})
"""


class Notes(Silent):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def note(self, message: str) -> None:
        self.messages.append(message)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with an objective."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "simple.py").write_text(OBJECTIVE)
    return tmp_path


def raw(name: str, **changes: Any) -> dict[str, Any]:
    settings = {"name": name, "objective": "simple:objective", "space": SPACE, "trials": 8, "sampler": "random"}
    return {**settings, "pruner": "none", "baseline": False, **changes}


def run(name: str, watch: Silent | None = None, **changes: Any) -> optuna.Study:
    return run_study.run(study_spec.build(raw(name, **changes), "test", Path()), URL, watch).study


def table(study: optuna.Study) -> list[Any]:
    return [(trial.state, trial.params, trial.value) for trial in study.get_trials()]


def test_it_is_learned_once_and_a_study_goes_on_without_the_earlier_ones() -> None:
    run("early", trials=20)
    notes = Notes()
    warm = run("late", notes, warm_start=["early"], trials=4)
    (said,) = [message for message in notes.messages if message.startswith("warm start")]
    assert "learned from the better quarter of early (5 of 20 trials)" in said
    best = optuna.load_study(study_name="early", storage=URL).best_params
    assert warm.trials[0].params == best
    optuna.delete_study(study_name="early", storage=URL)
    begun = table(warm)
    longer = run("late", warm_start=["early"], trials=8)
    assert table(longer)[:4] == begun
    assert table(run("late", trials=8)) == table(longer)  # nothing is left to run
    assert [trial.system_attrs[DRAWN_BY] for trial in longer.trials[1:6]] == [RANDOM, PRIOR, RANDOM, RANDOM, RANDOM]


def test_a_check_says_what_would_be_learned_and_writes_nothing() -> None:
    late = study_spec.build(raw("late", warm_start=["early"]), "test", Path())
    with pytest.raises(StudyError, match="early: there is no study of this name"):
        preflight.check(late, URL)
    assert not Path("hpo.db").exists()
    run("early")
    assert preflight.check(late, URL).facts["warm start"].startswith("learned from the better quarter of early (2 of 8")
    assert optuna.get_all_study_names(URL) == ["early"]


def test_draws_go_on_as_without_a_pause() -> None:
    run("early", trials=20)
    run("a", warm_start=["early"], trials=9)
    run("b", warm_start=["early"], trials=3)
    optuna.delete_study(study_name="early", storage=URL)
    again = run("b", trials=9)
    whole = optuna.load_study(study_name="a", storage=URL)
    assert table(again) == table(whole)


def test_a_study_that_is_killed_ends_with_the_same_table() -> None:
    run("early", trials=12)
    changes: dict[str, Any] = {"warm_start": ["early"], "sampler": "auto", "pruner": "auto", "trials": 20}
    undisturbed = table(run("whole", **changes))
    killed = {**raw("killed", **changes)}
    for kills, left in enumerate(("3", "9")):
        Path("kill").write_text(left)
        code = RUN.format(raw=killed, url=URL)
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL, kills
    Path("kill").unlink()
    optuna.delete_study(study_name="early", storage=URL)
    assert table(run("killed", **changes)) == undisturbed


def test_all_that_does_not_match_is_said_and_nothing_is_written() -> None:
    run("space", space={"x": {"low": 0.0, "high": 2.0}, "kind": ["a", "b"], "more": 3})
    run("direction", direction="minimize")
    run("few", trials=3)
    optuna.create_study(storage=URL, study_name="bare")
    with pytest.raises(StudyError) as raised:
        run("late", warm_start=["space", "direction", "few", "bare", "none", "late", "other.db#x"])
    assert str(raised.value).split("\n") == [
        "study 'late' cannot have this warm start, and nothing is written:",
        "  space: space.x.high is 2.0, here 1.0",
        "  space: space.more is 3, here not there",
        "  direction: direction is 'minimize', here 'maximize'",
        "  few: has 3 trials that can be ranked (completed, pruned or diverged), and a warm start needs 4: let it run "
        "on",
        "  bare: has no search space stored, as its objective suggests parameters itself",
        "  none: there is no study of this name in this storage (it has bare, direction, few, space); one of another "
        "storage is named STORAGE#NAME",
        "  late: is the study itself; a study that is run again goes on by itself",
        "  sqlite:///other.db#x: there is no storage sqlite:///other.db",
        "Name studies of the same space, task and metric, or leave the warm start out",
    ]
    assert "late" not in optuna.get_all_study_names(URL)


def test_priors_and_published_configurations_need_not_match() -> None:
    run("early", space={"parameters": SPACE, "configurations": [{"x": 0.1}]})
    space = {"x": {**SPACE["x"], "prior": {"mean": 0.2, "spread": 0.1}}, "kind": ["a", "b"]}  # type: ignore[dict-item]
    assert run("late", warm_start=["early"], space=space).trials[0].state == TrialState.COMPLETE


def test_a_study_of_another_storage_is_named_with_it() -> None:
    early = study_spec.build(raw("early"), "test", Path())
    run_study.run(early, "sqlite:///old.db")
    assert len(run("late", warm_start=["old.db#early"]).trials) == 8


def test_a_password_is_neither_stored_nor_shown() -> None:
    with pytest.raises(StudyError) as raised:
        run("late", warm_start=["postgresql://me:s3cret@host/db#early"])
    assert "has a password in the URL" in str(raised.value)
    assert "s3cret" not in str(raised.value)
    assert not Path("hpo.db").exists() or "late" not in optuna.get_all_study_names(URL)


@pytest.mark.parametrize(
    ("begun", "asked", "said"),
    [
        (None, ["early"], "was begun with no warm start, not with one from early"),
        (["early"], ["early", "other"], "was begun with a warm start from early, not with one from early, other"),
    ],
)
def test_a_study_that_has_begun_keeps_its_warm_start(begun: list[str] | None, asked: list[str], said: str) -> None:
    run("early")
    run("other")
    run("late", warm_start=begun)
    with pytest.raises(StudyError, match=said):
        run("late", warm_start=asked, trials=12)
    assert len(optuna.load_study(study_name="late", storage=URL).trials) == 8
