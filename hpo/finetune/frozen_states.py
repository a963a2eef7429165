"""What the frozen layers yield for all rows of a study: computed once, kept in a file, shared by all trials.

The file is one array [tokens, hidden], which is mapped into memory, so the system keeps in memory what is in use. Its
name has a digest of all that the values depend on, and one of its content, so a damaged file is noticed and made anew.
It is written under another name and then renamed, under a lock: one process computes it, the others wait and read it.

The batches are fixed, so the values do not depend on a trial, on threads or on slots. In a batch of another shape the
last bits of a row's values may differ, as products of other shapes are summed in another order.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from transformers import PreTrainedModel

from hpo.core.errors import StudyError
from hpo.core.formatting import size
from hpo.finetune import device
from hpo.finetune.data.batches import by_length
from hpo.finetune.data.encoded import Tokens
from hpo.finetune.models import frozen
from hpo.storage.file_lock import FileLock

Array = np.ndarray[Any, Any]
Splits = dict[str, Tokens]

log = logging.getLogger(__name__)


class FrozenStates:
    """The rows of a study with the states that frozen layers yield, for each number of frozen layers.

    Args:
        tokens: Split -> its rows.
        like: [1, hidden], of the dtype of the states.
        autocast: Context of the study's precision.
        depends_on: What the values depend on besides the rows and the number of layers.

    Attributes:
        folder: Where the files are; None for a temporary folder of this process.
    """

    def __init__(
        self,
        tokens: Splits,
        like: torch.Tensor,
        autocast: Callable[[], AbstractContextManager[Any]],
        depends_on: Mapping[str, Any],
    ) -> None:
        self._tokens, self._like, self._autocast = tokens, like, autocast
        self._key = json.dumps([depends_on, str(like.dtype), _digest_of_rows(tokens)], sort_keys=True)
        self._with_states: dict[int, Splits] = {}
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self.folder: Path | None = None

    @property
    def bytes(self) -> int:
        """Size of the states for one number of frozen layers."""
        return sum(map(_count, self._tokens.values())) * self._like.numel() * self._like.element_size()

    def stand_in(self, split: str) -> Tokens:
        """Return the rows of a split with zeros for states, to measure speed and to find gradients with."""
        tokens = self._tokens[split]
        return replace(tokens, states=self._like.to(tokens.ids.device).expand(_count(tokens), -1))

    def of(self, model: PreTrainedModel, layers: int) -> Splits:
        """Return split -> its rows with the states that the lowest layers yield; from the file if there is one.

        Args:
            model: Its lowest layers, and what comes before them, are as pretrained.
            layers: Number of frozen layers, above 0.

        Raises:
            StudyError: The file cannot be written.
        """
        if layers not in self._with_states:
            try:
                states = self._placed(self._opened(model, layers))
            except OSError as error:
                raise StudyError(
                    f"the states of frozen_layers: {layers} ({size(self.bytes)}) cannot be kept in {self._place()} "
                    f"({error.strerror or error}); make room there, or leave frozen_layers out of the space"
                ) from None
            ends = np.cumsum([_count(tokens) for tokens in self._tokens.values()])
            self._with_states[layers] = {
                name: replace(tokens, states=states[end - _count(tokens) : end])
                for (name, tokens), end in zip(self._tokens.items(), ends.tolist(), strict=True)
            }
        return self._with_states[layers]

    def _place(self) -> Path:
        if self.folder is not None:
            return self.folder
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="hpo-frozen-")
        return Path(self._temporary.name)

    def _placed(self, states: torch.Tensor) -> torch.Tensor:
        """Return the states on the device if they fit in half of its free memory, else on the host."""
        where = next(iter(self._tokens.values())).ids.device
        if where.type == "cuda" and 2 * self.bytes < torch.cuda.mem_get_info(where)[0]:
            return states.to(where)
        return states

    # ------------------------------------------------------------ the file

    def _opened(self, model: PreTrainedModel, layers: int) -> torch.Tensor:
        """Return the mapped file, written first if there is no whole one."""
        folder = self._place()
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{layers}-{hashlib.sha256(self._key.encode()).hexdigest()[:16]}"
        with FileLock(folder / f"{name}.lock"):
            path = self._whole(folder, name) or self._written(folder / name, model, layers)
        flat = torch.from_file(
            str(path), shared=False, size=self.bytes // self._like.element_size(), dtype=self._like.dtype
        )
        return flat.view(-1, self._like.shape[1])

    def _whole(self, folder: Path, name: str) -> Path | None:
        """Return the file of that name if its content is as its name says; delete it if not."""
        for path in folder.glob(f"{name}-*.states"):
            if path.name == f"{name}-{_digest(path)}.states" and path.stat().st_size == self.bytes:
                return path
            log.info("%s is damaged and is made anew", path)
            path.unlink()
        return None

    def _written(self, stem: Path, model: PreTrainedModel, layers: int) -> Path:
        """Compute the states of all rows, and return their file."""
        unfinished = stem.with_suffix(".unfinished")
        with unfinished.open("wb") as file:
            self._compute(model, layers, file)
            file.flush()
            os.fsync(file.fileno())
        return unfinished.rename(stem.with_name(f"{stem.name}-{_digest(unfinished)}.states"))

    def _compute(self, model: PreTrainedModel, layers: int, file: BinaryIO) -> None:
        """Write the states of all rows, row after row, split after split."""
        where, starts, batches, begin = next(iter(self._tokens.values())).ids.device, {}, [], 0
        for split, tokens in self._tokens.items():
            starts[split] = begin + tokens.starts.cpu().numpy()
            begin += _count(tokens)
            batches += [(split, rows) for rows in by_length(tokens.lengths, device.scoring_batch(where))]
        log.info("computing the lowest layers once for all rows (frozen_layers: %d, %s)", layers, size(self.bytes))

        def states(split: str, rows: Array) -> torch.Tensor:
            inputs, _ = self._tokens[split].batch(rows)
            with torch.no_grad(), self._autocast():
                return frozen.states(model, inputs).to("cpu", self._like.dtype)

        # Each batch in one thread: the last bits may depend on the number of threads of a product.
        threads = torch.get_num_threads() if where.type == "cpu" else 1
        width = self._like.shape[1] * self._like.element_size()
        with (
            frozen.ending_at(model, layers),
            device.threaded(threads),
            ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            waiting = math.ceil(len(batches) / _AHEAD)
            for part in range(waiting):
                some = batches[part * _AHEAD : (part + 1) * _AHEAD]
                for (split, rows), found in zip(some, pool.map(lambda each: states(*each), some), strict=True):
                    counts = self._tokens[split].counts.cpu().numpy()[rows].ravel()
                    for start, count, values in zip(starts[split][rows].ravel(), counts, found, strict=True):
                        file.seek(int(start) * width)
                        real = values[:count].contiguous()
                        file.write(real.view(torch.uint8).numpy().data)


# Batches that may wait in memory to be written.
_AHEAD = 64


def _count(tokens: Tokens) -> int:
    """Return the number of tokens of all rows."""
    return len(tokens.ids)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _digest_of_rows(splits: Splits) -> str:
    """Return a digest of the inputs of all rows."""
    found = hashlib.sha256()
    for split, tokens in splits.items():
        for name, values in (*tokens.values.items(), ("lengths", tokens.counts)):
            found.update(f"{split} {name} {len(values)} ".encode())
            found.update(values.cpu().contiguous().numpy().data)
    return found.hexdigest()
