from __future__ import annotations

import threading
from typing import Any

import pytest

from hpo.execution import checkpoint_writer
from hpo.execution.checkpoint_store import Checkpoint
from hpo.execution.checkpoint_writer import CheckpointWriter


class Disk:
    """Checkpoints of which each takes as many seconds, of a clock that only they move, as its `state` says."""

    def __init__(self) -> None:
        self.now = 100.0
        self.written: list[tuple[str, float, float]] = []  # array, from, to
        self.open = threading.Event()
        self.open.set()
        self.reason: str | None = None

    def clock(self) -> float:
        return self.now

    def taken(self, seconds: float, writing: float = 0.0) -> Checkpoint:
        self.now += seconds
        return Checkpoint({}, {"seconds": writing})

    def save(self, array: str, checkpoint: Checkpoint) -> str | None:
        began = self.now
        assert self.open.wait(60)
        self.now += checkpoint.state["seconds"]
        self.written.append((array, began, self.now))
        return self.reason


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def writer(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> CheckpointWriter:
    """Return a writer whose first checkpoint is due."""
    monkeypatch.setattr(checkpoint_writer, "FIRST", 0)
    return CheckpointWriter(disk, disk.clock)  # type: ignore[arg-type]


def test_the_first_minute_has_none_unless_it_is_asked_for(disk: Disk) -> None:
    writer = CheckpointWriter(disk, disk.clock)  # type: ignore[arg-type]
    disk.now += 59.9
    writer.offer("array", lambda: pytest.fail("it was taken"))
    writer.flush("stopped", Checkpoint({}, {"seconds": 0}))
    disk.now += 0.1
    writer.offer("array", lambda: disk.taken(0))
    writer._wait()
    assert [name for name, *_ in disk.written] == ["stopped", "array"]


def test_the_next_checkpoint_waits_twenty_times_as_long_as_the_last_one_took(
    disk: Disk, writer: CheckpointWriter
) -> None:
    began = []
    while disk.now < 1000:
        before = disk.now
        writer.offer("array", lambda: disk.taken(1, writing=2))
        writer._wait()
        if disk.now > before:
            began.append(before)
        disk.now += 1  # training
    assert began == [100 + 63 * i for i in range(15)]  # 3 seconds each, and 60 of peace: 4.8 %
    assert writer.problem is None


def test_what_is_not_due_is_not_taken(disk: Disk, writer: CheckpointWriter) -> None:
    writer.offer("array", lambda: disk.taken(1))
    writer._wait()
    disk.now += 19.9
    writer.offer("array", lambda: pytest.fail("it was taken"))
    disk.now += 0.1
    writer.offer("other", lambda: disk.taken(0))
    writer._wait()
    assert [name for name, *_ in disk.written] == ["array", "other"]


def test_one_is_written_at_a_time_and_training_does_not_wait(disk: Disk, writer: CheckpointWriter) -> None:
    disk.open.clear()
    writer.offer("first", lambda: disk.taken(0))
    for _ in range(3):
        disk.now += 1000
        writer.offer("second", lambda: pytest.fail("it was taken"))
    assert disk.written == []
    disk.open.set()
    writer.flush("last", Checkpoint({}, {"seconds": 5}))
    assert [name for name, *_ in disk.written] == ["first", "last"]
    disk.now += 99
    writer.offer("array", lambda: pytest.fail("it was taken"))  # a flush counts too
    disk.now += 1
    writer.offer("array", lambda: disk.taken(0))
    writer.close()
    assert disk.written[-1][0] == "array"
    disk.now += 10**6
    writer.offer("array", lambda: pytest.fail("it was taken"))


def test_the_first_problem_is_stored_and_training_goes_on(disk: Disk, writer: CheckpointWriter) -> None:
    disk.reason = "the disk is full"
    writer.offer("array", lambda: disk.taken(0))
    writer._wait()
    disk.reason = "the disk is fuller"
    writer.flush("array", disk.taken(0))
    assert writer.problem == "the disk is full"
    assert len(disk.written) == 2


@pytest.mark.parametrize("where", ["take", "save", "flush"])
def test_whatever_is_raised_is_a_problem_and_the_next_one_is_written(
    disk: Disk, writer: CheckpointWriter, where: str
) -> None:
    def broken(*given: Any) -> Any:
        disk.now += 1
        raise RuntimeError("no memory")

    with pytest.MonkeyPatch.context() as patch:
        if where != "take":
            patch.setattr(disk, "save", broken)
        if where == "flush":
            writer.flush("array", disk.taken(0))
        else:
            writer.offer("array", broken if where == "take" else lambda: disk.taken(0))
            writer._wait()
    assert "(RuntimeError: no memory)" in str(writer.problem)
    writer.offer("array", lambda: pytest.fail("it was taken"))
    disk.now += 20
    writer.offer("array", lambda: disk.taken(0))
    writer._wait()
    assert len(disk.written) == 1
