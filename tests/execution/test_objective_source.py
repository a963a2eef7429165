"""Which objective a study is of: an edited one, or another file's, is refused unless it is said to be the same."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

import hpo
from hpo.core.errors import StudyError
from hpo.execution.objective_source import source_digest
from hpo.storage import backends

MODULE = '''
import math
SCALE = 2.0
UNUSED = 1

def _scaled(value):
    return SCALE * math.sin(value)

def objective(params):
    """Score."""
    return _scaled(params["x"])  # a number

def another(params):
    return objective(params)

class Made:
    bias = 1.0
    def __call__(self, params):
        return self.bias
    def method(self, params):
        return self.bias

first, second = lambda params: 1.0, lambda params: 2.0
'''


@pytest.fixture
def digest(tmp_path: Path) -> Callable[..., str | None]:
    """Return a function that gives the digest of an objective of a module's text."""
    made = 0

    def of(text: str, name: str = "objective") -> str | None:
        nonlocal made
        made += 1
        path = tmp_path / f"own{made}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return source_digest(eval(name, vars(module)))

    return of


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# a number", ""),
        ('"""Score."""', '"""Another word on it."""'),
        ("UNUSED = 1", "UNUSED = 2\nstudy = print"),
        ("return objective(params)", "return 0.0"),
        ("import math", "\n\n\nimport math"),
        ('_scaled(params["x"])', "_scaled(params['x'])"),
    ],
)
def test_what_changes_no_score_does_not_count(digest: Any, old: str, new: str) -> None:
    assert old in MODULE
    assert digest(MODULE) == digest(MODULE.replace(old, new)) is not None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('params["x"]', 'params["x"] + 1'),
        ("SCALE = 2.0", "SCALE = 3.0"),
        ("math.sin", "math.cos"),
        ("import math", "import cmath as math"),
    ],
)
def test_what_may_change_a_score_counts_however_far_away_in_the_file(digest: Any, old: str, new: str) -> None:
    assert old in MODULE
    assert digest(MODULE) != digest(MODULE.replace(old, new))
    assert digest(MODULE, "another") != digest(MODULE.replace(old, new), "another")


def test_of_a_method_the_class_counts_and_of_a_partial_the_function(digest: Any) -> None:
    edited = MODULE.replace("bias = 1.0", "bias = 2.0")
    for name in ("Made()", "Made().method"):
        assert digest(MODULE, name) == digest(MODULE, name) != digest(edited, name)
    assert source_digest(functools.partial(functools.partial(plain))) == source_digest(plain) is not None


def test_where_there_is_no_source_nothing_is_made_up(digest: Any) -> None:
    assert digest(MODULE, "first") is None  # two lambdas in a line
    assert source_digest(abs) is None
    space: dict[str, Any] = {}
    exec("def objective(params):\n    return 1.0", space)
    assert source_digest(space["objective"]) is None


def plain(params: Any) -> float:
    return float(params["x"])


# ---------------------------------------------------------------- in a study

STUDY = "name: s\nobjective: own:objective\nspace: {x: [1, 2, 3, 4, 5]}\nsampler: random\npruner: none\n"
OWN = "def objective(params):\n    return params['x']\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a study of an own objective."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    Path("own.py").write_text(OWN)
    Path("s.yaml").write_text(STUDY)
    return tmp_path


@pytest.fixture
def run(call: Any) -> Callable[..., tuple[int, str]]:
    """Return a function that runs the study as a new process would, with its objective read again."""

    def again(*words: str) -> tuple[int, str]:
        sys.modules.pop("own", None)
        importlib.invalidate_caches()
        code, printed = call("run", "s.yaml", "--quiet", *words)
        return code, printed

    return again


def test_an_edited_objective_is_refused_by_name_until_it_is_said_to_be_the_same(folder: Path, run: Any) -> None:
    assert run("--trials", "2")[0] == 0
    Path("own.py").write_text(OWN.replace("params['x']", "-params['x']"))
    code, printed = run("--trials", "3")
    assert code == 2
    assert "objective_source: was '" in printed
    assert "it has been edited, or is another file's" in printed
    assert "begin a new study with --set name=s-2" in printed
    assert "--set same_objective=true" in printed
    code, printed = run("--trials", "3", "--set", "same_objective=true")
    assert code == 0, printed
    assert run("--trials", "4")[0] == 0  # it is the study's from then on
    Path("own.py").write_text(OWN)
    assert run("--trials", "5")[0] == 2  # said once, not for ever


def test_another_files_objective_of_the_same_name_is_refused(folder: Path, run: Any, monkeypatch: Any) -> None:
    assert run("--trials", "2", "--storage", f"sqlite:////{folder}/a.db")[0] == 0
    Path("other").mkdir()
    Path("other/own.py").write_text(OWN.replace("return", "return 2 *"))
    Path("other/s.yaml").write_text(STUDY)
    monkeypatch.chdir("other")
    code, printed = run("--trials", "3", "--storage", f"sqlite:////{folder}/a.db")
    assert code == 2
    assert "is another file's" in printed


def scores(folder: Path) -> list[float | None]:
    return [row.value for row in optuna.load_study(study_name="study", storage="sqlite:///a.db").trials]


def test_an_objective_of_the_same_name_is_refused_by_optimize_too(folder: Path) -> None:
    def make(text: str) -> Any:
        Path("own.py").write_text(text)
        sys.modules.pop("own", None)
        importlib.invalidate_caches()
        from hpo.execution.custom_objective import imported

        return imported("own:objective", folder)

    url, space = "sqlite:///a.db", {"x": [1, 2, 3, 4, 5]}
    hpo.optimize(make(OWN), space, trials=2, storage=url)
    other = make(OWN.replace("params['x']", "10 * params['x']"))
    with pytest.raises(StudyError, match=r"objective_source.*\n.*same_objective=True"):
        hpo.optimize(other, space, trials=3, storage=url)
    assert len(scores(folder)) == 2
    assert len(hpo.optimize(other, space, trials=3, storage=url, same_objective=True).trials) == 3


def test_an_optuna_objective_is_refused_likewise(folder: Path) -> None:
    def one(trial: optuna.Trial) -> float:
        return trial.suggest_float("x", 0.0, 1.0)

    first, one = one, lambda trial: 2.0  # type: ignore[assignment]
    url = "sqlite:///a.db"
    hpo.optimize(first, trials=1, storage=url)
    with pytest.raises(StudyError, match="objective: was"):
        hpo.optimize(one, trials=2, storage=url)
    assert len(hpo.optimize(one, trials=2, storage=url, same_objective=True).trials) == 2
    optuna.create_study(study_name="theirs", storage=url, direction="maximize")
    assert len(hpo.optimize(first, trials=1, storage=url, name="theirs").trials) == 1  # begun by Optuna alone


def test_a_study_begun_before_sources_were_kept_goes_on_and_has_one_from_then_on(folder: Path, run: Any) -> None:
    assert run("--trials", "2")[0] == 0
    study = optuna.load_study(study_name="s", storage=backends.connect("sqlite:///hpo.db"))
    fingerprint = study.user_attrs["fingerprint"]
    study.set_user_attr("fingerprint", {**fingerprint, "facts": {}})
    assert run("--trials", "3")[0] == 0
    Path("own.py").write_text(OWN + "    # edited\n    return 0")
    assert run("--trials", "4")[0] == 2


def test_what_is_not_known_is_said(folder: Path) -> None:
    code = (
        "import hpo\nfrom hpo.core.events import Silent\n"
        "class Say(Silent):\n    def note(self, message): print(message)\n"
        "def objective(params): return params['x']\n"
        "for n in (1, 2): hpo.optimize(objective, {'x': [1, 2]}, trials=n, storage='sqlite:///a.db', watch=Say())\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("source cannot be read here") == 2
