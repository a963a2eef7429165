"""A recorder for programs on a CPU that does what a CUDA graph does: operations on memory, and nothing else.

A replay runs no Python code of the program: numbers, shapes and tensors that the program took from the host are
those of the recording. So a program that depends on any of them gives other results when it is replayed. A program
that reads a value of a tensor cannot be recorded at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten._unique2.default,
}
COPIES = {aten._to_copy.default, aten.copy_.default}


class Tape(TorchDispatchMode):
    """Records the operations that run within it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, dict[int, torch.Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and record it with its tensors."""
        kwargs = kwargs or {}
        assert func not in WAITS, f"{func} waits for the device"
        memory = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if _is_tensor(leaf)}
        result = func(*args, **kwargs)
        made = {
            place: leaf
            for place, leaf in enumerate(tree_leaves(result))
            if _is_tensor(leaf) and leaf.untyped_storage().data_ptr() not in memory  # no view
        }
        self.calls.append((func, args, kwargs, made))
        return result

    def replay(self) -> None:
        """Run all operations again, into the same memory."""
        with torch.no_grad():
            for func, args, kwargs, made in self.calls:
                again = tree_leaves(func(*args, **kwargs))
                for place, old in made.items():
                    old.copy_(again[place])


class OnDevice(TorchDispatchMode):
    """Refuses operations on a device that read tensors of the host, which a recording on a GPU cannot do.

    A number is allowed: it is an argument of a kernel, and recorded with it.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and check that its inputs are on the device of its result."""
        result = func(*args, **(kwargs or {}))
        read = [leaf for leaf in tree_leaves((args, kwargs)) if _is_tensor(leaf)]
        devices = {leaf.device for leaf in [*read, *tree_leaves(result)] if _is_tensor(leaf)}
        host = [leaf for leaf in read if leaf.device.type == "cpu" and (leaf.ndim or func in COPIES)]
        assert len(devices) < 2 or not host, f"{func} reads from the host"
        return result


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)


class Taped:
    """Replaces `hpo.finetune.folded.cuda_graph.Replay`: records the third call, and replays from then on."""

    replayed = 0

    def __init__(self, program: Callable[[], None], device: torch.device) -> None:
        self._program, self._calls, self._tape = program, 0, Tape()

    def __call__(self) -> None:
        """Run the program, or its recording."""
        self._calls += 1
        if self._calls > 3:
            self._tape.replay()
            Taped.replayed += 1
        elif self._calls == 3:
            with self._tape:
                self._program()
        else:
            self._program()
