"""On CUDA, a program is recorded once and then replayed: one launch in place of some thousand (a CUDA graph)."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from hpo.finetune.device import out_of_memory

WARM_UP = 2  # calls before the recording, in which libraries set up what they do once


class Replay:
    """Calls a program; after its first calls, on CUDA, replays what they launched.

    Args:
        program: Reads and writes tensors that stay where they are, does not wait for the device, and depends on
            nothing of the host that changes.
        device: Where.
    """

    def __init__(self, program: Callable[[], None], device: torch.device) -> None:
        self._program, self._device = program, device
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._records = device.type == "cuda"

    def __call__(self) -> None:
        """Run the program."""
        if not self._records:
            self._program()
            return
        self._calls += 1
        if self._calls <= WARM_UP:
            self._beside()
            return
        if self._graph is None:
            try:
                self._graph = self._recorded()
            except RuntimeError as error:
                # How a recording ends then hides what went wrong in it.
                reason = error.__context__ if isinstance(error.__context__, RuntimeError) else error
                if out_of_memory(reason):
                    raise reason from None
                first = str(reason).partition("\n")[0]
                warnings.warn(f"training goes on without CUDA graphs, slower ({first})", stacklevel=2)
                self._records = False
                self._program()
                return
        self._graph.replay()

    def _beside(self) -> None:
        """Run on a stream of its own, as PyTorch wants it before a recording."""
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            self._program()
        torch.cuda.current_stream(self._device).wait_stream(stream)

    def _recorded(self) -> torch.cuda.CUDAGraph:
        """Record the program; nothing is computed."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._program()
        return graph
