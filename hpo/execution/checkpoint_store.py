"""What is kept of arrays of trials, as files. It is a cache: whatever is wrong with it, it is not there.

    <folder>/<array>/manifest.json             every slot's trial and state; replaced as a whole
    <folder>/<array>/<SHA-256>.safetensors     a slot's tensors, under the name of what is in them

Each array's folder has one writer, the process that holds the locks of its trials.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpo.core.trainer import TrialCheckpoint

MANIFEST = "manifest.json"
FORMAT = 1
LIMIT = 20 * 10**9  # bytes
NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_-]{0,99}")  # of an array
FIRST = 60  # seconds of a process without one: they protect what is soon done again, and a short study pays for none
REST = 20  # times as long as one checkpoint took, the next one waits: writing takes less than 5 % of the time
ABANDONED = 3600  # seconds after which files without a manifest are nobody's: none takes as long to write


@dataclass(frozen=True)
class Checkpoint:
    """What is kept of an array, as one.

    Attributes:
        slots: Slot -> what is in it.
        state: What belongs to the array and to no slot, in JSON.
    """

    slots: Mapping[int, TrialCheckpoint]
    state: Mapping[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one study.

    Args:
        folder: Where they are; an array's is a folder inside.
        fingerprint: What tells this study from all others, in JSON; under another nothing is read.
        limit: Bytes that they may take in all. It is looked at before writing: what several workers write at the
            same moment may exceed it for that moment.
    """

    def __init__(self, folder: Path, fingerprint: Any, limit: int = LIMIT) -> None:
        self._folder, self._limit = folder, limit
        self._study = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()

    def save(self, array: str, kept: Checkpoint) -> str | None:
        """Replace an array's checkpoint; killed at any moment, the one before or the new one is there.

        Returns:
            Why nothing was written, and the one before stays; None if it was.

        Raises:
            TypeError: A state is more than JSON can say.
            ValueError: So it is too with NaN or an infinity in it.
        """
        place = self._place(array)
        needed = sum(tensor.nbytes for slot in kept.slots.values() for tensor in slot.tensors.values())
        if (taken := used(self._folder)) + needed > self._limit:
            return (
                f"no checkpoint was written: {self._folder} holds {taken / 1e9:.1f} GB, {needed / 1e9:.1f} GB more "
                f"would exceed the {self._limit / 1e9:.1f} GB that a study's checkpoints may take"
            )
        try:
            place.mkdir(parents=True, exist_ok=True)
            slots = {number: _written(place, slot) for number, slot in kept.slots.items()}
            body = {"format": FORMAT, "study": self._study, "state": kept.state, "slots": slots}
            _replace(place / MANIFEST, _dumped({"checksum": _checksum(body), "body": body}).encode())
        except OSError as error:  # a full disk, above all
            return f"no checkpoint was written: {place}: {error.strerror or error}"
        finally:
            self._sweep(place)
        return None

    def load(self, array: str) -> tuple[Checkpoint | None, str]:
        """Return an array's checkpoint; None, and why, if there is none that can be relied on."""
        return self._read(self._place(array), with_tensors=True)

    def of(self, trial: int) -> TrialCheckpoint | None:
        """Return what is kept of a trial where it is furthest; None if there is nothing that can be relied on."""
        found = [(slot, name, n) for name, kept in self.found().items() for n, slot in kept.slots.items()]
        own = [(_step(slot), name, n) for slot, name, n in found if slot.trial == trial]
        for _, name, number in sorted(own, reverse=True):
            try:
                place = self._place(name)
                return _kept(place, self._body(place)["slots"][str(number)], with_tensors=True)
            except Exception:  # as in `_read`
                continue
        return None

    def found(self) -> dict[str, Checkpoint]:
        """Return the checkpoints of all arrays, without tensors: whose trials are kept where."""
        read = {place.name: self._read(place, with_tensors=False)[0] for place in self._places()}
        return {name: checkpoint for name, checkpoint in read.items() if checkpoint is not None}

    def drop(self, array: str) -> None:
        """Delete an array's checkpoint; nothing happens if there is none."""
        shutil.rmtree(self._place(array), ignore_errors=True)

    def sweep(self, unfinished: Container[int]) -> None:
        """Delete what no unfinished trial needs, and what a killed worker left that never came to a manifest."""
        found = self.found()
        for place in self._places():
            if place.name in found:
                needed = any(slot.trial in unfinished for slot in found[place.name].slots.values())
            else:
                needed = time.time() - _last_written(place) < ABANDONED
            if not needed:
                self.drop(place.name)

    def _place(self, array: str) -> Path:
        if not NAME.fullmatch(array):
            raise ValueError(f"an array cannot be called {array!r}; use letters, digits, - and _")
        return self._folder / array

    def _places(self) -> list[Path]:
        return sorted(place for place in self._folder.glob("*") if NAME.fullmatch(place.name))

    def _read(self, place: Path, *, with_tensors: bool) -> tuple[Checkpoint | None, str]:
        try:
            body = self._body(place)
            slots = {int(number): _kept(place, entry, with_tensors) for number, entry in body["slots"].items()}
            return Checkpoint(slots, body["state"]), ""
        except Exception as error:  # whatever it is: what the checkpoint held is computed again
            return None, f"no checkpoint in {place} ({type(error).__name__}: {error})"

    def _body(self, place: Path) -> dict[str, Any]:
        """Return what a manifest says, if it is whole and this study's."""
        manifest = json.loads((place / MANIFEST).read_bytes())
        body: dict[str, Any] = manifest["body"]
        if manifest["checksum"] != _checksum(body):
            raise ValueError("the manifest is damaged")
        if (body["format"], body["study"]) != (FORMAT, self._study):
            raise ValueError("it is another study's, or was written with other settings or another version of hpo")
        return body

    def _sweep(self, place: Path) -> None:
        """Delete the files that no manifest names: the former checkpoint's, or those of one that came to nothing."""
        named = {MANIFEST}
        try:
            named |= {f"{entry['sha256']}.safetensors" for entry in self._body(place)["slots"].values()}
        except Exception as error:  # as in `_read`: it is of no use, unless it only cannot be read now
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                return
        for path in place.glob("*"):
            if path.name not in named:
                with suppress(OSError):
                    path.unlink()


class Writer:
    """Writes checkpoints beside the training, from its second minute on: one at a time, less than 5 % of the time.

    Args:
        checkpoints: Where they go.
        clock: Seconds, from any beginning.

    Attributes:
        problem: Why the first checkpoint that was not written was not; None as long as all were.
    """

    def __init__(self, checkpoints: Checkpoints, clock: Callable[[], float] = time.monotonic) -> None:
        self.problem: str | None = None
        self._checkpoints, self._clock = checkpoints, clock
        self._due = clock() + FIRST
        self._thread: threading.Thread | None = None

    def offer(self, array: str, take: Callable[[], Checkpoint]) -> None:
        """Write an array's checkpoint in the background, if it is time for one; returns at once if it is not.

        Args:
            array: Its name.
            take: Returns the checkpoint, in memory that training does not change; called here, before the return.
        """
        if (self._thread is not None and self._thread.is_alive()) or self._clock() < self._due:
            return
        began = self._clock()
        try:
            kept = take()
        except Exception as error:  # no memory for a copy, above all
            self._not_written(f"no checkpoint was taken ({type(error).__name__}: {error})")
            self._pace(began)
            return
        # A daemon, so that a disk that hangs does not keep the process.
        self._thread = threading.Thread(target=self._write, args=(array, kept, began), name="checkpoint", daemon=True)
        self._thread.start()

    def flush(self, array: str, kept: Checkpoint) -> None:
        """Write an array's checkpoint now, after what is under way."""
        self._wait()
        self._write(array, kept, self._clock())

    def close(self) -> None:
        """Wait for what is under way, and write nothing that is offered from here on."""
        self._wait()
        self._due = math.inf

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _write(self, array: str, kept: Checkpoint, began: float) -> None:
        try:
            self._not_written(self._checkpoints.save(array, kept))
        except Exception as error:  # checkpoints are a cache: training goes on without
            self._not_written(f"no checkpoint was written ({type(error).__name__}: {error})")
        self._pace(began)

    def _not_written(self, reason: str | None) -> None:
        self.problem = self.problem or reason

    def _pace(self, began: float) -> None:
        ended = self._clock()
        self._due = ended + REST * (ended - began)


def used(folder: Path) -> int:
    """Return the bytes that the files below a folder take; 0 if there is none."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # deleted meanwhile
                total += os.stat(os.path.join(place, name)).st_size
    return total


def _last_written(place: Path) -> float:
    times = [place.stat().st_mtime]
    for path in place.glob("*"):
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def _step(kept: TrialCheckpoint) -> int:
    step = kept.state.get("step")
    return step if isinstance(step, int) else 0


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_dumped(body).encode()).hexdigest()


def _dumped(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def _written(place: Path, slot: TrialCheckpoint) -> dict[str, Any]:
    """Write a slot's tensors, and return its entry in the manifest."""
    from safetensors.torch import save

    # Copies: tied weights share their memory, which the format refuses; read again, they are equal, not one.
    data = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in slot.tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    _replace(place / f"{digest}.safetensors", data)
    return {"trial": slot.trial, "state": slot.state, "sha256": digest, "bytes": len(data)}


def _kept(place: Path, entry: Mapping[str, Any], with_tensors: bool) -> TrialCheckpoint:
    """Return what a manifest's entry stands for, its file compared with what it says."""
    if not re.fullmatch("[0-9a-f]{64}", entry["sha256"]):
        raise ValueError(f"{entry['sha256']!r} is no SHA-256")
    path = place / f"{entry['sha256']}.safetensors"
    if path.stat().st_size != entry["bytes"]:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not {entry['bytes']}")
    kept = TrialCheckpoint(int(entry["trial"]), entry["state"])
    if not with_tensors:
        return kept
    from safetensors.torch import load

    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise ValueError(f"{path.name} is damaged")
    return TrialCheckpoint(kept.trial, kept.state, load(data))


def _replace(path: Path, data: bytes) -> None:
    """Replace a file as a whole: whoever reads it, after whatever crash, reads the one before or the new one."""
    unfinished = path.with_name(f".{path.name}")
    with open(unfinished, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name too is on the disk before anything that depends on it
    finally:
        os.close(folder)
