"""The memory that training takes: estimated before, from the model and a pass, and measured after.

Weights, gradients, moments and copies are counted. What a pass allocates on top is measured in real passes, so it holds
for any architecture, precision and engine. A pass over n rows takes at most n times what a pass over one row takes, as
each tensor of it either grows with the rows or does not. So the whole micro-batch is passed only where this bound says
that it fits; else the rows are doubled as long as it does, and the last bound is the estimate.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hpo.core import process_memory


@dataclass(frozen=True)
class Memory:
    """The parts of the peak of training in bytes, for all slots together.

    Attributes:
        weights: Of the models, with the pretrained ones to which trials are put back.
        gradients: Of the trained parameters.
        moments: The two of AdamW.
        best_weights: The copies of the weights of each trial's best evaluation.
        rows: The rows of the data, with the states of frozen layers.
        activations: What a pass allocates besides gradients.
        checkpoint: On a CPU, the copy that is written while training goes on; there is none in the first minute.
    """

    weights: int
    gradients: int
    moments: int
    best_weights: int
    rows: int
    activations: int
    checkpoint: int = 0

    def __add__(self, other: Memory) -> Memory:
        """Return the memory of two arrays."""
        mine, theirs = asdict(self), asdict(other)
        return Memory(**{part: mine[part] + theirs[part] for part in mine})


def size_of(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the memory that tensors lie in; what several of them share counts once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def size_of_model(model: nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers."""
    return size_of([*model.parameters(), *model.buffers()])


# ---------------------------------------------------------------- a pass


def of_pass(passed: Callable[[int], Callable[[], None]], rows: int, where: torch.device, free: int | None) -> int:
    """Return the most bytes that a pass over some rows allocates, or a bound of it where the pass might not fit.

    Args:
        passed: Takes a number of rows, and returns a pass over them.
        rows: Of the pass asked for.
        where: Its device.
        free: Bytes of which at most half may be used to find out; None for no limit.
    """
    count, most = 1, allocated(passed(1), where)
    while count < rows:
        fitting = [n for n in (rows, 2 * count) if n <= rows and (free is None or 2 * most * n <= free * count)]
        if not fitting:
            break
        count = fitting[0]
        most = allocated(passed(count), where)
    return -(-most * rows // count)


def allocated(run: Callable[[], None], where: torch.device) -> int:
    """Return the most bytes that a function holds at once of what it allocates on a device.

    On CUDA it is what PyTorch's allocator reports. On a CPU it is what operations return; what libraries allocate
    within an operation is not seen.
    """
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
        before = torch.cuda.memory_allocated(where)
        run()
        return torch.cuda.max_memory_allocated(where) - before
    seen = _Storages()
    with seen:
        run()
    return seen.most


class _Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the memory that operations allocate, in the forward and the backward pass.

    Attributes:
        most: The most bytes that were held at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = self._now = 0
        self._held: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; memory that its inputs had before is not counted."""
        for tensor in _tensors((args, kwargs)):
            self._hold(tensor, counts=False)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._hold(tensor, counts=True)
        return result

    def _hold(self, tensor: torch.Tensor, counts: bool) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if counts else 0
        if key in self._held:
            return

        def freed(_: object) -> None:
            del self._held[key]
            self._now -= size

        self._held[key] = weakref.ref(storage, freed)
        self._now += size
        self.most = max(self.most, self._now)


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


# ---------------------------------------------------------------- before and after


@dataclass(frozen=True)
class Before:
    """The memory before a model was loaded.

    Attributes:
        where: The device of training.
        free: Bytes that could be used on it; None if unknown.
        used: Bytes that the process had in use: on a CPU resident ones, else those of PyTorch's allocator.
        peak: The most of them until then.
    """

    where: torch.device
    free: int | None
    used: int | None
    peak: int

    @classmethod
    def now(cls, where: torch.device) -> Before:
        """Return the present state."""
        if where.type == "cuda":
            free, _ = torch.cuda.mem_get_info(where)
            return cls(where, free, torch.cuda.memory_allocated(where), torch.cuda.max_memory_allocated(where))
        if where.type == "cpu":
            return cls(where, process_memory.free(), process_memory.resident(), process_memory.peak())
        return cls(where, None, None, 0)

    def used_since(self) -> int | None:
        """Return how far the peak since then is above what was used then.

        None if that cannot be told: the system does not say, or the peak was before.
        """
        if self.used is None:
            return None
        if self.where.type == "cuda":
            return torch.cuda.max_memory_allocated(self.where) - self.used
        most = process_memory.peak()
        return most - self.used if most > self.peak else None
