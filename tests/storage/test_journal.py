from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import optuna
import pytest

from hpo.core.errors import StorageError, StorageGoneError
from hpo.storage import backends

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.mark.parametrize(
    "content",
    [
        "garbage",
        "garbage\n",
        "\n",
        "garbage\ngarbage\n",
        "3\n",
        '{"a": 1}\n',
        '{"op_code": 99}\n',
        "[1]\n",
        '{"op_code":4,\n',
    ],
)
def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(tmp_path: Path, content: str) -> None:
    Path("it.log").write_text(content)
    with pytest.raises(StorageError, match=r"it\.log is not an Optuna journal, or is damaged"):
        backends.connect("journal:///it.log")
    assert Path("it.log").read_text() == content
    assert list(tmp_path.iterdir()) == [tmp_path / "it.log"]


def test_an_empty_file_is_a_new_journal_and_an_unfinished_record_is_no_damage() -> None:
    Path("it.log").touch()
    optuna.create_study(storage=backends.connect("journal:///it.log"), study_name="kept")
    with Path("it.log").open("a") as file:
        file.write('{"op_code": 4, "wor')  # as if another process is writing it
    assert optuna.get_all_study_names(backends.connect("journal:///it.log")) == ["kept"]


def test_a_journal_torn_anywhere_is_read_up_to_there_and_goes_on() -> None:
    lines = [f"study-{i}" for i in range(3)]
    for name in lines:
        optuna.create_study(storage=backends.connect("journal:///whole.log"), study_name=name)
    whole = Path("whole.log").read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        Path("it.log").write_bytes(whole[:size])
        optuna.create_study(storage=backends.connect("journal:///it.log"), study_name="next")
        complete = lines[: sum(end <= size for end in ends)]
        assert optuna.get_all_study_names(backends.connect("journal:///it.log")) == [*complete, "next"], size


def test_a_process_killed_while_it_writes_to_a_journal_blocks_no_other() -> None:
    optuna.create_study(storage=backends.connect("journal:///it.log"), study_name="kept")
    code = """
from hpo.storage import backends
storage = backends.connect("journal:///it.log")
storage._backend._lock.acquire()
print("in", flush=True)
input()
"""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "in\n"
        done = threading.Event()
        storage = backends.connect("journal:///it.log")
        create = threading.Thread(target=lambda: (optuna.create_study(storage=storage, study_name="next"), done.set()))
        create.start()
        assert not done.wait(0.5)
        writer.kill()
        assert done.wait(5)
        create.join()


def test_a_journal_that_was_deleted_is_an_error_and_its_lock_is_free() -> None:
    storage = backends.connect("journal:///it.log")
    Path("it.log").unlink()
    for name in ("one", "two"):
        with pytest.raises(StorageGoneError, match="deleted or moved"):
            optuna.create_study(storage=storage, study_name=name)
