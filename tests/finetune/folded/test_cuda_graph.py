"""When a program is run, recorded and replayed; with a fake CUDA that records its calls."""

from contextlib import contextmanager

import pytest
import torch

from hpo.finetune.folded.cuda_graph import Replay


class Stream:
    def wait_stream(self, other):
        """Streams wait for each other."""


@pytest.fixture
def said(monkeypatch):
    """The calls of CUDA and of the program."""
    calls = []

    class Graph:
        def replay(self):
            calls.append("replayed")

    class Recording:
        """Ends as CUDA's recording does: an error within it becomes the context of another error."""

        def __init__(self, graph):
            calls.append("recording")

        def __enter__(self):
            """Begin."""

        def __exit__(self, kind, *rest):
            if kind is not None:
                raise RuntimeError("operation failed due to a previous error during capture")
            calls.append("recorded")

    @contextmanager
    def on(stream):
        calls.append("beside")
        yield

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    return calls


def test_on_a_cpu_a_program_is_called(said):
    replay = Replay(lambda: said.append("called"), torch.device("cpu"))
    for _ in range(4):
        replay()
    assert said == ["called"] * 4


def test_on_cuda_it_is_recorded_after_two_calls_and_then_replayed(said):
    """A recording computes nothing: it is replayed at once."""
    replay = Replay(lambda: said.append("called"), torch.device("cuda"))
    for _ in range(5):
        replay()
    assert said == [*["beside", "called"] * 2, "recording", "called", "recorded", *["replayed"] * 3]


def failing(said, error):
    def program():
        said.append("called")
        if "recording" in said and said.count("recording") > said.count("raised"):
            said.append("raised")
            raise error

    return Replay(program, torch.device("cuda"))


def test_a_program_that_cannot_be_recorded_runs_without_with_a_warning(said):
    replay = failing(said, RuntimeError("operation not permitted when stream is capturing\nand more"))
    replay()
    replay()
    with pytest.warns(UserWarning, match=r"without CUDA graphs, slower \(operation not permitted .* capturing\)"):
        replay()
    replay()
    replay()
    assert said == [*["beside", "called"] * 2, "recording", "called", "raised", "called", "called", "called"]


def test_out_of_memory_in_a_recording_is_out_of_memory(said):
    replay = failing(said, torch.OutOfMemoryError("CUDA out of memory"))
    replay()
    replay()
    with pytest.raises(torch.OutOfMemoryError):
        replay()
