"""On CUDA, a program is recorded once and then replayed: one launch instead of some thousand (a CUDA graph)."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from hpo.finetune.device import out_of_memory

WARM_UP = 2  # calls before the recording, in which libraries do their initial work


class Replay:
    """Calls a program; on CUDA, records it after its first calls and then replays the recording.

    Args:
        program: Reads and writes tensors whose memory does not move, does not wait for the device, and depends on no
            changing values of the host.
        device: Where the program runs.
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
            self._run_on_side_stream()
            return
        if self._graph is None:
            try:
                self._graph = self._recorded()
            except RuntimeError as error:
                # The error at the end of a recording hides the error within it.
                reason = error.__context__ if isinstance(error.__context__, RuntimeError) else error
                if out_of_memory(reason):
                    raise reason from None
                first = str(reason).partition("\n")[0]
                warnings.warn(f"training goes on without CUDA graphs, slower ({first})", stacklevel=2)
                self._records = False
                self._program()
                return
        self._graph.replay()

    def _run_on_side_stream(self) -> None:
        """Run on a side stream, as PyTorch requires before a recording."""
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
