from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from hpo.core.errors import StorageGoneError
from hpo.storage import backends

pytestmark = pytest.mark.usefixtures("own_folder")


def delete(path: Path) -> None:
    for part in path.parent.glob(f"{path.name}*"):
        if part.is_file():
            part.unlink()


def replace(path: Path) -> None:
    shutil.copy(path, "copy")
    os.replace("copy", path)


@pytest.mark.parametrize("how", [delete, replace])
@pytest.mark.parametrize("url", ["sqlite:///it.db", "journal:///it.db"])
def test_using_a_file_that_is_gone_is_an_error(url: str, how: Any) -> None:
    storage = backends.connect(url)
    study = optuna.create_study(storage=storage, study_name="kept")
    study.add_trial(optuna.create_trial(value=1.0))
    how(Path("it.db"))
    before = Path("it.db").exists()
    said = "deleted or moved" if how is delete else "replaced by another file"
    for use in (
        lambda: study.set_user_attr("a", 1),
        lambda: study.ask(),
        lambda: study.trials,
        lambda: optuna.get_all_study_names(storage),
    ):
        with pytest.raises(
            StorageGoneError, match=rf"the storage {url} is gone: /\S+/it.db was {said}.*Put the file back"
        ):
            use()
    assert Path("it.db").exists() == before  # no new file was made


@pytest.mark.parametrize("url", ["sqlite:///it.db", "journal:///it.db"])
def test_a_file_that_is_moved_away_and_back_is_the_same(url: str) -> None:
    storage = backends.connect(url)
    os.rename("it.db", "away")
    with pytest.raises(StorageGoneError):
        optuna.create_study(storage=storage, study_name="kept")
    os.rename("away", "it.db")
    optuna.create_study(storage=storage, study_name="kept")
    assert optuna.get_all_study_names(backends.look(url)) == ["kept"]


GONE = """
import os, shutil, time
from pathlib import Path

def objective(params):
    Path(f"began{{os.getpid()}}").touch()
    while len(list(Path().glob("began*"))) < {processes}:  # a worker that starts later would make a new file
        time.sleep(0.01)
    for step in range(3):
        yield params["x"] * step
    if len(list(Path().glob("ran*"))) == 2:
        {how}
    Path(f"ran{{params['x']}}").touch()
"""


HOWS = {
    "deleted": "[path.unlink() for path in Path().glob('it*') if path.is_file()]",
    "replaced": "shutil.copy('it', 'new'); os.replace('new', 'it')",
}


@pytest.mark.slow
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("scheme", ["sqlite", "journal"])
@pytest.mark.parametrize("workers", [[], ["--workers", "2"]], ids=["alone", "together"])
def test_a_run_whose_storage_is_gone_ends_with_an_error_and_no_result(
    scheme: str, how: str, workers: list[str]
) -> None:
    Path("own.py").write_text(GONE.format(how=HOWS[how], processes=2 if workers else 1))
    space = "{x: {low: 0.0, high: 1.0}}"
    Path("s.yaml").write_text(
        f"objective: own:objective\nspace: {space}\ntrials: 6\nsampler: random\npruner: none\nbaseline: false\n"
    )
    command = [sys.executable, "-m", "hpo.cli", "run", "s.yaml", "--storage", f"{scheme}:///it", *workers]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 2, ran.stdout + ran.stderr
    assert f"is gone: {Path('it').absolute()} was {how}" in ran.stderr
    assert "run the same command again" in ran.stderr.replace("\n", " ")
    assert "best: " not in ran.stdout
    assert "next:" not in ran.stdout
    assert "Traceback" not in ran.stderr
