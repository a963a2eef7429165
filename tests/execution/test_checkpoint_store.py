from __future__ import annotations

import builtins
import errno
import hashlib
import io
import json
import math
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hpo.core.trainer import TrialCheckpoint
from hpo.execution import checkpoint_store, checkpoint_writer
from hpo.execution.checkpoint_store import MANIFEST, Checkpoint, Checkpoints, used
from hpo.execution.checkpoint_writer import CheckpointWriter

STUDY = {"name": "study", "settings": {"seed": 1}}


def made(step: int, size: int = 5) -> Checkpoint:
    """Return a checkpoint of an array of two slots after some steps."""
    draw = torch.Generator().manual_seed(step)

    def kept(trial: int) -> TrialCheckpoint:
        moments = {f"exp_avg.{i}": torch.randn(size, 2, generator=draw) for i in range(2)}
        state = {"step": step, "history": [0.1 * step, None], "order": draw.initial_seed()}
        return TrialCheckpoint(trial, state, {**moments, "random": draw.get_state()[:8]})

    return Checkpoint({0: kept(10), 3: kept(11)}, {"micro_batch": step})


def same(one: Checkpoint | None, other: Checkpoint | None) -> bool:
    if one is None or other is None:
        return one is other
    facts = [({n: (s.trial, s.state, sorted(s.tensors)) for n, s in c.slots.items()}, c.state) for c in (one, other)]
    return facts[0] == facts[1] and all(
        torch.equal(tensor, other.slots[n].tensors[name])
        for n, s in one.slots.items()
        for name, tensor in s.tensors.items()
    )


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", STUDY)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "array"


# ---------------------------------------------------------------- there and back


def test_what_is_saved_is_loaded_to_the_bit(kept: Checkpoints, place: Path) -> None:
    assert kept.save("array", made(1)) is None
    loaded, reason = kept.load("array")
    assert same(loaded, made(1))
    assert reason == ""
    assert sorted(path.suffix for path in place.iterdir()) == [".json", ".safetensors", ".safetensors"]
    assert kept.save("array", made(2)) is None
    assert same(kept.load("array")[0], made(2))
    assert len(list(place.iterdir())) == 3  # the files of the one before are gone


def test_every_kind_of_tensor_comes_back(kept: Checkpoints) -> None:
    whole = torch.arange(24.0).view(2, 3, 4)
    tensors = {
        "view": whole[1],
        "transposed": whole[0].T,
        "tied": whole[1],
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "none": torch.empty(0, 3),
        "bfloat16": torch.tensor([1.0, float("nan")]).to(torch.bfloat16),
        "integers": torch.tensor([2**62, -1]),
        "bytes": torch.get_rng_state(),
        "trained": torch.nn.Parameter(torch.ones(2)),
        "é/../x": torch.ones(1),
    }
    assert kept.save("array", Checkpoint({0: TrialCheckpoint(0, {}, tensors), 1: TrialCheckpoint(1)})) is None
    loaded, _ = kept.load("array")
    assert loaded is not None
    assert loaded.slots[1] == TrialCheckpoint(1)
    assert set(loaded.slots[0].tensors) == set(tensors)
    for name, tensor in loaded.slots[0].tensors.items():
        expected = tensors[name].detach()
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor.nan_to_num(), expected.nan_to_num())


def test_a_float_in_a_state_comes_back_to_the_bit(kept: Checkpoints) -> None:
    state = {
        "values": [0.1 + 0.2, 5e-324, -0.0, 1e308],
        "text": "é\ud800",
        "nothing": None,
        "nested": {"a": [1]},
    }
    assert kept.save("array", Checkpoint({0: TrialCheckpoint(0, state)}, state)) is None
    loaded, _ = kept.load("array")
    assert loaded == Checkpoint({0: TrialCheckpoint(0, state)}, state)


def test_a_state_that_json_cannot_say_is_the_callers_error_and_the_one_before_stays(kept: Checkpoints) -> None:
    kept.save("array", made(1))
    for bad in (object(), {1, 2}, math.nan, [math.inf]):
        for checkpoint_of_it in (Checkpoint({0: TrialCheckpoint(0, {"x": bad})}), Checkpoint({}, {"x": bad})):
            with pytest.raises((TypeError, ValueError), match=r"not JSON (serializable|compliant)"):
                kept.save("array", checkpoint_of_it)
    assert same(kept.load("array")[0], made(1))


def test_arrays_are_kept_apart_and_found_by_their_trials(kept: Checkpoints) -> None:
    assert kept.found() == {}
    kept.save("one", made(1))
    kept.save("two", Checkpoint({0: TrialCheckpoint(20, {"step": 9}, {"w": torch.ones(1)})}))
    found = kept.found()
    assert {name: [s.trial for s in c.slots.values()] for name, c in found.items()} == {
        "one": [10, 11],
        "two": [20],
    }
    assert found["two"] == Checkpoint({0: TrialCheckpoint(20, {"step": 9})})
    kept.drop("one")
    kept.drop("one")
    assert list(kept.found()) == ["two"]


@pytest.mark.parametrize("name", ["../../x", "", ".", "..", "a/b", "/x", "x" * 101, ".hidden", "a\n", "é"])
def test_no_name_of_an_array_becomes_a_path_unchecked(kept: Checkpoints, name: str, tmp_path: Path) -> None:
    for use in (lambda: kept.save(name, made(1)), lambda: kept.load(name), lambda: kept.drop(name)):
        with pytest.raises(ValueError, match="an array cannot be called"):
            use()
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- what is no checkpoint


def refused(kept: Checkpoints, why: str) -> None:
    loaded, reason = kept.load("array")
    assert loaded is None
    assert why in reason, reason
    assert "array" in reason


def test_there_is_none_at_first(kept: Checkpoints) -> None:
    refused(kept, "No such file")


def test_a_manifest_torn_anywhere_is_none(kept: Checkpoints, place: Path) -> None:
    kept.save("array", made(1))
    whole = (place / MANIFEST).read_bytes()
    for size in range(len(whole)):
        (place / MANIFEST).write_bytes(whole[:size])
        assert kept.load("array")[0] is None, size
        assert kept.found() == {}, size
    (place / MANIFEST).write_bytes(whole)
    assert same(kept.load("array")[0], made(1))


def test_a_manifest_with_any_byte_changed_is_none_or_says_the_same(kept: Checkpoints, place: Path) -> None:
    kept.save("array", made(1))
    whole = (place / MANIFEST).read_bytes()
    for i in range(len(whole)):
        (place / MANIFEST).write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        loaded, _ = kept.load("array")
        assert loaded is None or same(loaded, made(1)), i


def test_a_tensor_file_torn_anywhere_is_none(kept: Checkpoints, place: Path) -> None:
    kept.save("array", made(1))
    file = sorted(place.glob("*.safetensors"))[0]
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        assert kept.load("array")[0] is None, size
    file.write_bytes(whole)
    assert same(kept.load("array")[0], made(1))


def test_a_tensor_file_that_is_damaged_too_long_or_missing_is_none(kept: Checkpoints, place: Path) -> None:
    kept.save("array", made(1))
    file = sorted(place.glob("*.safetensors"))[1]
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(kept, "is damaged")
    file.write_bytes(whole + b"\0")
    refused(kept, f"has {len(whole) + 1} bytes, not {len(whole)}")
    file.unlink()
    refused(kept, "No such file")
    assert kept.found() == {}


@pytest.mark.parametrize("other", [{"name": "another"}, {**STUDY, "settings": {"seed": 2}}, None])
def test_another_studys_is_none(kept: Checkpoints, tmp_path: Path, other: Any) -> None:
    kept.save("array", made(1))
    refused(Checkpoints(tmp_path / "checkpoints", other), "another study's")
    again = Checkpoints(tmp_path / "checkpoints", dict(reversed(STUDY.items())))
    assert same(again.load("array")[0], made(1))


def test_another_formats_is_none(kept: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.save("array", made(1))
    monkeypatch.setattr(checkpoint_store, "FORMAT", 2)
    refused(kept, "another version")


def forge(kept: Checkpoints, place: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Write a manifest that is whole but says something else."""
    body = json.loads((place / MANIFEST).read_text())["body"]
    change(body)
    (place / MANIFEST).write_text(json.dumps({"checksum": checkpoint_store._checksum(body), "body": body}))


class Poison:
    def __reduce__(self) -> Any:
        return os.mkdir, ("poisoned",)


def test_a_forged_manifest_reads_no_other_file_and_nothing_is_unpickled(
    kept: Checkpoints, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(b"")
    kept.save("array", made(1))
    for name in ("../../outside", str(tmp_path / "outside"), "A" * 64, "", 3, None, ["0" * 64]):
        forge(kept, place, lambda body, name=name: body["slots"]["0"].update(sha256=name, bytes=0))
        assert kept.load("array")[0] is None
        assert kept.found() == {}
        kept._delete_unnamed_files(place)  # which reads names too
    assert outside.exists()
    for data in (pickle.dumps(Poison()), b"\x80\x02]", b"\xff" * 100):
        kept.save("array", made(1))
        digest = hashlib.sha256(data).hexdigest()
        (place / f"{digest}.safetensors").write_bytes(data)
        forge(kept, place, lambda body, d=digest, n=data: body["slots"]["0"].update(sha256=d, bytes=len(n)))
        refused(kept, "SafetensorError")
    assert not Path("poisoned").exists()


@pytest.mark.parametrize(
    "text", ["[]", "null", "3", '{"body": {}}', '{"checksum": "", "body": 3}', "[" * 10**5, "\udcff"]
)
def test_a_manifest_that_is_none_is_none(kept: Checkpoints, place: Path, text: str) -> None:
    place.mkdir(parents=True)
    (place / MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    assert kept.load("array")[0] is None
    forge_of: list[Callable[[dict[str, Any]], object]] = [
        lambda body: body.pop("slots"),
        lambda body: body.update(slots=[]),
        lambda body: body["slots"].update(x=3),
        lambda body: body["slots"]["0"].pop("trial"),
    ]
    for change in forge_of:
        kept.save("array", made(1))
        forge(kept, place, change)
        assert kept.load("array")[0] is None


# ---------------------------------------------------------------- crashes and full disks

OPERATIONS = (
    (builtins, "open"),
    (io, "open"),
    (os, "open"),
    (os, "mkdir"),
    (os, "fsync"),
    (os, "replace"),
    (os, "unlink"),
    (os, "close"),
)


def at_operation(number: int, *, after: bool, act: Callable[[], object]) -> Callable[[], int]:
    """Let something happen before or after the n-th file operation from here on; return a counter of them."""
    count = 0

    def wrapped(do: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            mine = count == number
            if mine and not after:
                act()
            try:
                return do(*args, **kwargs)
            finally:
                if mine and after:
                    act()

        return operation

    for module, name in OPERATIONS:
        setattr(module, name, wrapped(getattr(module, name)))
    return lambda: count


def in_a_child(do: Callable[[], object]) -> int:
    """Run something in a forked process, which it may kill or whose modules it may change; return how that ended."""
    child = os.fork()
    if child == 0:
        try:
            do()
        except BaseException:
            os._exit(99)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("before", [None, 1])
def test_killed_at_any_file_operation_the_old_or_the_new_one_is_there(
    kept: Checkpoints, place: Path, tmp_path: Path, before: int | None, after: bool
) -> None:
    old = made(before) if before else None
    seen = []

    def killed(number: int) -> None:
        at_operation(number, after=after, act=lambda: os.kill(os.getpid(), signal.SIGKILL))
        kept.save("array", made(2))

    for number in range(1, 100):
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
        if old:
            kept.save("array", old)
        code = in_a_child(lambda number=number: killed(number))
        loaded, _ = kept.load("array")
        assert same(loaded, old) or same(loaded, made(2)), number
        seen.append(same(loaded, made(2)))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert kept.save("array", made(3)) is None
        assert same(kept.load("array")[0], made(3))
        assert len(list(place.iterdir())) == 3, number  # what the killed one left is swept
    assert len(seen) > 20
    assert seen == sorted(seen)  # once the new one is there, it stays
    assert 1 < sum(seen) < len(seen)


@pytest.mark.parametrize("before", [None, 1])
def test_a_disk_full_at_any_file_operation_leaves_the_old_or_the_new_one(
    kept: Checkpoints, place: Path, tmp_path: Path, before: int | None
) -> None:
    old = made(before) if before else None

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def saved(number: int) -> None:
        report = (tmp_path / "reason").open("w")
        operations = at_operation(number, after=False, act=full)
        report.write(kept.save("array", made(2)) or "")
        report.flush()
        os._exit(1 if operations() >= number else 0)

    for number in range(1, 100):
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
        if old:
            kept.save("array", old)
        code = in_a_child(lambda number=number: saved(number))
        assert code in (0, 1), number
        reason = (tmp_path / "reason").read_text()
        assert reason == "" or "No space left on device" in reason
        loaded, _ = kept.load("array")
        assert same(loaded, made(2)) if not reason else (same(loaded, old) or same(loaded, made(2))), number
        if code == 0:
            break
    assert number > 20


def test_a_file_cut_short_by_a_limit_leaves_the_old_one_and_nothing_else(kept: Checkpoints, place: Path) -> None:
    kept.save("array", made(1))
    before = sorted(place.iterdir())

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        reason = kept.save("array", made(2, size=1000))
        assert reason is not None
        assert "File too large" in reason

    assert in_a_child(limited) == 0
    assert same(kept.load("array")[0], made(1))
    assert sorted(place.iterdir()) == before


# ---------------------------------------------------------------- how much


def test_what_would_exceed_the_limit_is_not_written(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    kept = Checkpoints(folder, STUDY, limit=30_000)
    assert kept.save("one", made(1, size=500)) is None
    assert 16_000 < used(folder) < 20_000
    for name in ("one", "two"):
        reason = kept.save(name, made(2, size=1000))
        assert reason is not None
        assert "would exceed" in reason
        assert str(folder) in reason
    assert used(folder) < 20_000
    assert same(kept.load("one")[0], made(1, size=500))
    assert kept.load("two")[0] is None
    assert kept.save("one", made(3, size=200)) is None
    assert same(kept.load("one")[0], made(3, size=200))


def test_the_limit_is_20_gb_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Checkpoints(tmp_path / "checkpoints", STUDY)
    monkeypatch.setattr(checkpoint_store, "used", lambda folder: 20 * 10**9)
    reason = kept.save("array", made(1))
    assert reason is not None
    assert "holds 20.0 GB, 0.0 GB more would exceed the 20.0 GB" in reason


def test_disk_use_is_what_the_files_take(tmp_path: Path) -> None:
    assert used(tmp_path / "none") == 0
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x").write_bytes(b"x" * 1000)
    (tmp_path / "a" / ".y").write_bytes(b"y" * 24)
    (tmp_path / "a" / "gone").symlink_to("nowhere")
    assert used(tmp_path) == 1024


def of_trial(trial: int, step: int, other: int = 99) -> Checkpoint:
    """Return a checkpoint in whose second slot a trial is at a step."""
    return Checkpoint(
        {
            0: TrialCheckpoint(other, {"step": 1000}),
            2: TrialCheckpoint(trial, {"step": step}, {"w": torch.full((2,), step)}),
        }
    )


def test_of_a_trial_that_is_kept_several_times_the_furthest_one_is_returned(kept: Checkpoints) -> None:
    for name, step in (("z", 5), ("trial-7", 30), ("b", 20), ("a", 9)):  # neither the last name nor the last written
        kept.save(name, of_trial(7, step))
    found = kept.of(7)
    assert found is not None
    assert (found.trial, found.state) == (7, {"step": 30})
    assert torch.equal(found.tensors["w"], torch.full((2,), 30))
    kept.drop("trial-7")
    assert kept.of(7) == TrialCheckpoint(7, {"step": 20}, {"w": pytest.approx(torch.full((2,), 20))})


def test_of_a_trial_that_is_not_kept_there_is_none(kept: Checkpoints, tmp_path: Path) -> None:
    assert kept.of(7) is None
    kept.save("a", of_trial(7, 5))
    assert kept.of(5) is None
    assert Checkpoints(tmp_path / "checkpoints", "another study").of(7) is None


def test_a_trial_without_a_step_is_the_least_far(kept: Checkpoints) -> None:
    kept.save("z", Checkpoint({0: TrialCheckpoint(7)}))
    assert kept.of(7) == TrialCheckpoint(7)
    kept.save("a", of_trial(7, 1))
    assert (found := kept.of(7)) is not None
    assert found.state == {"step": 1}


def truncated(place: Path) -> None:
    for path in place.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])


def flipped(place: Path) -> None:
    for path in place.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"!")


def without_tensors(place: Path) -> None:
    for path in place.glob("*.safetensors"):
        path.unlink()


def torn(place: Path) -> None:
    (place / MANIFEST).write_bytes((place / MANIFEST).read_bytes()[:-9])


@pytest.mark.parametrize("damage", [truncated, flipped, without_tensors, torn, shutil.rmtree])
def test_a_damaged_checkpoint_of_a_trial_is_passed_over(
    kept: Checkpoints, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    for step in (10, 20, 30):
        kept.save(f"at-{step}", of_trial(7, step))
    for step, left in ((30, 20), (20, 10), (10, None)):
        damage(tmp_path / "checkpoints" / f"at-{step}")
        found = kept.of(7)
        assert (found and found.state["step"]) == left


@pytest.mark.parametrize("step", [None, "30", [1]])
def test_a_step_that_is_no_number_hides_no_other_checkpoint(kept: Checkpoints, step: Any) -> None:
    kept.save("a", of_trial(7, 20))
    kept.save("b", Checkpoint({0: TrialCheckpoint(7, {"step": step})}))
    assert (found := kept.of(7)) is not None
    assert found.state["step"] in (20, step)


def test_what_no_unfinished_trial_needs_is_swept(kept: Checkpoints, tmp_path: Path) -> None:
    kept.save("ended", Checkpoint({0: TrialCheckpoint(1), 1: TrialCheckpoint(2)}))
    kept.save("half", Checkpoint({0: TrialCheckpoint(2), 1: TrialCheckpoint(3)}))
    folder = tmp_path / "checkpoints"
    for name in ("writing", "abandoned", "torn"):
        (folder / name).mkdir()
        (folder / name / ".x.safetensors").write_bytes(b"x")
    (folder / "torn" / MANIFEST).write_bytes(b"{")
    (folder / "not an array").mkdir()
    long_ago = time.time() - 2 * checkpoint_store.ABANDONED
    for path in [
        folder / "not an array",
        folder / "abandoned",
        *(folder / "abandoned").iterdir(),
        folder / "torn",
        *(folder / "torn").iterdir(),
    ]:
        os.utime(path, (long_ago, long_ago))
    kept.delete_unneeded({3, 4})
    assert sorted(path.name for path in folder.iterdir()) == ["half", "not an array", "writing"]


def test_the_module_loads_no_torch() -> None:
    code = "import sys, hpo.execution.checkpoint_store; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_writer_writes_what_is_loaded(kept: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_writer, "FIRST", 0)
    writer = CheckpointWriter(kept)
    writer.offer("array", lambda: made(1))
    writer.close()
    assert same(kept.load("array")[0], made(1))
    writer.flush("array", made(2))
    assert same(kept.load("array")[0], made(2))
