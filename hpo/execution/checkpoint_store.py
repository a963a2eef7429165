"""Checkpoints of arrays of trials, as files. They are a cache: a damaged or missing one costs time, not results.

    <folder>/<array>/manifest.json             the trial and state of every slot; replaced as a whole
    <folder>/<array>/<SHA-256>.safetensors     the tensors of one slot, named by their digest

Each array's folder has one writer: the process that holds the locks of its trials.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpo.core.trainer import TrialCheckpoint

MANIFEST = "manifest.json"
FORMAT = 1
LIMIT = 20 * 10**9  # bytes
NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_-]{0,99}")  # of an array
ABANDONED = 3600  # seconds after which a folder without a manifest is deleted: no checkpoint takes as long to write


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of an array.

    Attributes:
        slots: Slot -> the checkpoint of its trial.
        state: What belongs to the array and to no slot, in JSON.
    """

    slots: Mapping[int, TrialCheckpoint]
    state: Mapping[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one study.

    Args:
        folder: Where they are, in a folder for each array.
        fingerprint: Identifies the study, in JSON. A checkpoint with another fingerprint is ignored.
        limit: Bytes that all of them may take. It is checked before writing, so several processes that write at the
            same moment may exceed it for that moment.
    """

    def __init__(self, folder: Path, fingerprint: Any, limit: int = LIMIT) -> None:
        self._folder, self._limit = folder, limit
        self._study = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()

    def save(self, array: str, checkpoint: Checkpoint) -> str | None:
        """Replace an array's checkpoint. If the process is killed meanwhile, the old or the new one is there.

        Returns:
            Why nothing was written, in which case the old one stays; None if it was written.

        Raises:
            TypeError: A state has a value that JSON has not.
            ValueError: A state has a NaN or an infinity.
        """
        place = self._place(array)
        needed = sum(tensor.nbytes for slot in checkpoint.slots.values() for tensor in slot.tensors.values())
        if (taken := used(self._folder)) + needed > self._limit:
            return (
                f"no checkpoint was written: {self._folder} holds {taken / 1e9:.1f} GB, {needed / 1e9:.1f} GB more "
                f"would exceed the {self._limit / 1e9:.1f} GB that a study's checkpoints may take"
            )
        try:
            place.mkdir(parents=True, exist_ok=True)
            slots = {number: _write_slot(place, slot) for number, slot in checkpoint.slots.items()}
            body = {"format": FORMAT, "study": self._study, "state": checkpoint.state, "slots": slots}
            _replace(place / MANIFEST, _to_json({"checksum": _checksum(body), "body": body}).encode())
        except OSError as error:  # mostly a full disk
            return f"no checkpoint was written: {place}: {error.strerror or error}"
        finally:
            self._delete_unnamed_files(place)
        return None

    def load(self, array: str) -> tuple[Checkpoint | None, str]:
        """Return an array's checkpoint; None, and the reason, if there is no valid one."""
        return self._read(self._place(array), with_tensors=True)

    def of(self, trial: int) -> TrialCheckpoint | None:
        """Return the checkpoint of a trial that has the most steps; None if there is no valid one."""
        every = [(slot, name, n) for name, array in self.found().items() for n, slot in array.slots.items()]
        own = [(_step(slot), name, n) for slot, name, n in every if slot.trial == trial]
        for _, name, number in sorted(own, reverse=True):
            try:
                place = self._place(name)
                return _read_slot(place, self._body(place)["slots"][str(number)], with_tensors=True)
            except Exception:  # damaged: the next one, if there is another
                continue
        return None

    def found(self) -> dict[str, Checkpoint]:
        """Return the checkpoints of all arrays by name, without tensors."""
        read = {place.name: self._read(place, with_tensors=False)[0] for place in self._places()}
        return {name: checkpoint for name, checkpoint in read.items() if checkpoint is not None}

    def drop(self, array: str) -> None:
        """Delete an array's checkpoint, if there is one."""
        shutil.rmtree(self._place(array), ignore_errors=True)

    def delete_unneeded(self, unfinished: Container[int]) -> None:
        """Delete the checkpoints without unfinished trials, and what killed processes left without a manifest."""
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
            slots = {int(number): _read_slot(place, entry, with_tensors) for number, entry in body["slots"].items()}
            return Checkpoint(slots, body["state"]), ""
        except Exception as error:  # a checkpoint is a cache: any damage means that there is none
            return None, f"no checkpoint in {place} ({type(error).__name__}: {error})"

    def _body(self, place: Path) -> dict[str, Any]:
        """Return the content of a manifest, if it is undamaged and of this study."""
        manifest = json.loads((place / MANIFEST).read_bytes())
        body: dict[str, Any] = manifest["body"]
        if manifest["checksum"] != _checksum(body):
            raise ValueError("the manifest is damaged")
        if (body["format"], body["study"]) != (FORMAT, self._study):
            raise ValueError("it is another study's, or was written with other settings or another version of hpo")
        return body

    def _delete_unnamed_files(self, place: Path) -> None:
        """Delete the files that the manifest does not name: of the checkpoint before, or of a failed attempt."""
        named = {MANIFEST}
        try:
            named |= {f"{entry['sha256']}.safetensors" for entry in self._body(place)["slots"].values()}
        except Exception as error:  # an invalid manifest names no files
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                return  # it cannot be read now; later it may be valid
        for path in place.glob("*"):
            if path.name not in named:
                with suppress(OSError):
                    path.unlink()


def used(folder: Path) -> int:
    """Return the bytes of all files below a folder; 0 if there is none."""
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


def _step(checkpoint: TrialCheckpoint) -> int:
    step = checkpoint.state.get("step")
    return step if isinstance(step, int) else 0


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_to_json(body).encode()).hexdigest()


def _to_json(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def _write_slot(place: Path, slot: TrialCheckpoint) -> dict[str, Any]:
    """Write a slot's tensors, and return its entry in the manifest."""
    from safetensors.torch import save

    # The format refuses tied weights, which share memory. They are copied, and are separate tensors when read.
    data = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in slot.tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    _replace(place / f"{digest}.safetensors", data)
    return {"trial": slot.trial, "state": slot.state, "sha256": digest, "bytes": len(data)}


def _read_slot(place: Path, entry: Mapping[str, Any], with_tensors: bool) -> TrialCheckpoint:
    """Return the checkpoint of a manifest's entry, after checking the size of its file, and the digest if it is read.

    Raises:
        ValueError: The entry or the file is damaged.
    """
    if not re.fullmatch("[0-9a-f]{64}", entry["sha256"]):
        raise ValueError(f"{entry['sha256']!r} is no SHA-256")
    path = place / f"{entry['sha256']}.safetensors"
    if path.stat().st_size != entry["bytes"]:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not {entry['bytes']}")
    without_tensors = TrialCheckpoint(int(entry["trial"]), entry["state"])
    if not with_tensors:
        return without_tensors
    from safetensors.torch import load

    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise ValueError(f"{path.name} is damaged")
    return TrialCheckpoint(without_tensors.trial, without_tensors.state, load(data))


def _replace(path: Path, data: bytes) -> None:
    """Replace a file as a whole: after any crash, it has the old or the new content."""
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
