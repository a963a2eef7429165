"""The seam between training and search: training yields evaluations and never imports Optuna.

    def objective(params):                     # a custom objective, all of it
        model = build(params)
        for epoch in range(10):
            fit_one_epoch(model, params["learning_rate"])
            yield score(model)                 # reported; the pruner may stop here

The runner knows one shape only, the `TrialArray`: slots that each hold a trial and advance together, one
segment (the stretch between two evaluations) at a time. A generator is an array whose slots hold generators.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from hpo.core.errors import ConfigError, Problem
from hpo.core.interrupts import Halt
from hpo.execution.checkpoint_store import Kept

Score = float | int
Seen = tuple[int, int | None]
"""Examples that a trial has seen, and those of its whole training, if known."""
Objective = Callable[[Mapping[str, Any]], "Iterator[Evaluation | Score] | Evaluation | Score"]


@dataclass(frozen=True)
class Evaluation:
    """The score of a model at a point of its training.

    Attributes:
        value: What the study optimises.
        at: Examples seen; None counts the evaluations of the trial: 1, 2, ...
        metrics: Other scores, kept with the trial.
        of: Examples of the whole trial, if known; shows as progress.
        last: Whether the trial has ended with this evaluation.
        notes: Facts to keep with the trial, e.g. `{"collapsed": True}`.
    """

    value: float
    at: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    of: int | None = None
    last: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialSpec:
    """What an array needs to know of a trial.

    Attributes:
        number: The trial's number in its study.
        params: All its hyperparameters, fixed ones too.
        seed: Seed of everything random in it.
        kept: Where to go on from; None starts afresh.
    """

    number: int
    params: Mapping[str, Any]
    seed: int
    kept: Kept | None = None


class TrialArray(Protocol):
    """Slots that train trials together.

    Attributes:
        slots: How many trials it holds at once.
        segment: Steps (examples) between two evaluations; the smallest resource of a rung.
        horizon: Steps of the longest trial that the space allows, if known.
        facts: What the results depend on besides the study file (data, weights, precision, versions); kept
            with the study, which is not resumed under others.
        notes: What the user should know of how it runs.
        halted: Once set, `advance` returns as soon as the step under way is done.
    """

    slots: int
    segment: int
    horizon: int | None
    facts: Mapping[str, Any]
    notes: Sequence[str]
    halted: Halt

    def settle(self, facts: Mapping[str, Any]) -> None:
        """Take over from a study's facts what may be chosen anew in every process; `facts` then says so."""

    def load(self, slot: int, trial: TrialSpec) -> None:
        """Put a trial into an empty slot.

        Raises:
            Exception: Any; of a trial with `kept`, that it does not fit. The slot is as empty as it was.
        """

    def advance(self) -> dict[int, Evaluation | Exception]:
        """Train every occupied slot to the end of its segment.

        Returns:
            Slot -> its evaluation; or the exception that ended its trial, alone: `StopIteration` when it had
            no more to do (its value, if any, is the trial's result), a `TrialEndedError` when it is to be told
            PRUNED, a `GaveWayError` when it is to wait again, untold, because `slots` had to become fewer; any
            other when it failed. Slots that `halted` stopped before the end of their segment are left out, and
            stay loaded as they are.
        """

    def seen(self, slot: int) -> Seen | None:
        """Return how far the slot's trial is; None for an empty slot. Any thread may ask at any time."""

    def save(self, slot: int) -> Kept | None:
        """Return what the slot's trial needs to go on from here, in CPU memory of its own.

        Whoever writes it has time: training may go on meanwhile. None if the array cannot keep its trials.
        """

    def pause(self, slot: int) -> bool:
        """Empty a slot but hold on to its trial, which goes on where it was once `load` is called with its number.

        False, and the slot stays as it is, if the array holds only what is in slots.
        """

    def keep(self, slot: int, folder: Path) -> bool:
        """Write the weights of the slot's best evaluation; False if the array has none to keep."""

    def unload(self, slot: int) -> None:
        """Empty a slot, whatever state its trial is in; nothing happens to an empty one."""


class GeneratorArray:
    """An array whose slots hold generators: how custom objectives run."""

    def __init__(self, objective: Objective, slots: int = 1) -> None:
        self.objective = objective
        self.slots = slots
        self.segment = 1
        self.horizon: int | None = None
        self.facts: Mapping[str, Any] = {}
        self.notes: Sequence[str] = ()
        self.halted = Halt()
        self._numbers: dict[int, int] = {}  # slot -> its trial's
        self._running: dict[int, Generator[Any, None, Any]] = {}
        self._paused: dict[int, Generator[Any, None, Any]] = {}  # by trial
        self._seen: dict[int, Seen] = {}  # by trial, as far as it says

    def settle(self, facts: Mapping[str, Any]) -> None:
        """A custom objective chooses nothing anew."""

    def load(self, slot: int, trial: TrialSpec) -> None:
        """Put a trial into a slot; the objective starts, or goes on if it was paused, at the next `advance`."""
        paused = self._paused.pop(trial.number, None)
        self._running[slot] = paused or _evaluations(self.objective, trial.params)
        self._numbers[slot] = trial.number
        self._seen.setdefault(trial.number, (0, None))

    def advance(self) -> dict[int, Evaluation | Exception]:
        """Run every generator to its next `yield`; what runs within one cannot be halted."""
        outcomes: dict[int, Evaluation | Exception] = {}
        for slot, generator in self._running.items():
            if self.halted.is_set():
                break
            try:
                outcomes[slot] = said = _evaluation(next(generator))
                self._seen[self._numbers[slot]] = said.at or 0, said.of
            except Exception as error:  # the runner decides what each kind means for the trial
                outcomes[slot] = error
            except SystemExit as error:  # the trial's end, not the study's
                outcomes[slot] = RuntimeError(f"the objective called sys.exit({error.code!r})")
        return outcomes

    def seen(self, slot: int) -> Seen | None:
        """Return how far the slot's trial was when it last yielded."""
        return self._seen.get(self._numbers.get(slot, -1))

    def save(self, slot: int) -> Kept | None:
        """Where a generator stands cannot be kept."""
        return None

    def pause(self, slot: int) -> bool:
        """Put the slot's generator aside."""
        self._paused[self._numbers.pop(slot)] = self._running.pop(slot)
        return True

    def keep(self, slot: int, folder: Path) -> bool:
        """A custom objective keeps what it wants itself."""
        return False

    def unload(self, slot: int) -> None:
        """Close the generator, so that its `finally` cleans up."""
        if slot in self._running:
            del self._seen[self._numbers.pop(slot)]
            self._running.pop(slot).close()


def _evaluations(objective: Objective, params: Mapping[str, Any]) -> Generator[Any, None, Any]:
    """Return the objective as a generator; a plain function yields once."""
    result = objective(params)
    if isinstance(result, Iterator):
        return (yield from result)
    yield replace(_evaluation(result), last=True)
    return None


def _evaluation(score: Any) -> Evaluation:
    """Return a score as an evaluation.

    Raises:
        TypeError: It is neither an `Evaluation` nor a number.
    """
    if isinstance(score, Evaluation):
        return score
    try:
        if isinstance(score, str | bytes | bool) or score is None:
            raise TypeError
        return Evaluation(float(score))
    except (TypeError, ValueError):
        raise TypeError(
            f"the objective gave {score!r}, a {type(score).__name__}; yield or return a number or an Evaluation"
        ) from None


def imported(name: str, folder: Path) -> Callable[..., Any]:
    """Import a custom objective.

    Args:
        name: `module:function`.
        folder: The study file's folder, searched first, then the working folder.

    Raises:
        ConfigError: There is no such module or function, or importing it raises.
    """

    def problem(message: str) -> ConfigError:
        return ConfigError("the study", [Problem(("objective",), message)])

    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise problem(f"{name!r} must be module:function, e.g. train:objective")
    places = list(dict.fromkeys(str(place.resolve()) for place in (folder, Path.cwd())))
    sys.path[:] = [*places, *(place for place in sys.path if place not in places)]
    spec = importlib.machinery.PathFinder.find_spec(module, places)
    if spec is not None and getattr(sys.modules.get(module), "__file__", None) != spec.origin:
        sys.modules.pop(module, None)  # another study's module of the same name
    try:
        loaded = importlib.import_module(module)
    except SyntaxError as error:
        raise problem(f"{name!r} cannot be imported: {error}") from None
    except (Exception, SystemExit) as error:  # whatever the module does when it is run
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise problem(f"{name!r}: {error}; looked in {folder} and in the working folder") from None
        raise problem(f"{name!r} cannot be imported: {_raised(error, places)}") from None
    if not hasattr(loaded, attribute):
        raise problem(f"module {module!r} has no {attribute!r}")
    found = getattr(loaded, attribute)
    if not callable(found):
        raise problem(f"{name!r} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def _raised(error: BaseException, places: Sequence[str]) -> str:
    """Return an exception with the file and line that it comes from, the last one in the user's own folders."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    own = [f for f in frames if any(map(Path(f.filename).is_relative_to, places)) and "site-packages" not in f.filename]
    last = (own or frames)[-1]
    return f"{last.filename}, line {last.lineno}: {type(error).__name__}: {error}"
