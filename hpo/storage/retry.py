"""Asking a storage again while it is away: a database that restarts, a file that somebody else has locked."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, TypeVar

import tenacity
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from hpo.core.errors import StorageAwayError, StorageError, StorageGoneError, StorageHeldError, hidden
from hpo.core.interrupts import StopRequest
from hpo.storage.urls import redacted

PATIENCE = 600.0  # seconds to wait for a storage that is away
HALTING = 5.0  # the same for a process that was asked to end

Answer = TypeVar("Answer")


class Retry:
    """Asks a storage for what may be asked for twice.

    Args:
        url: URL of the storage, for messages.
        stop_request: Once it is set, a storage that is away is not waited for much longer.
        waits: Told why, before each wait.
    """

    def __init__(
        self, url: str | None, stop_request: StopRequest | None = None, waits: Callable[[str], None] | None = None
    ) -> None:
        self._where = "" if url is None else f" {redacted(url)}"
        self._stop_request, self._waits = stop_request or StopRequest(), waits or (lambda message: None)

    def __call__(self, ask: Callable[[], Answer]) -> Answer:
        """Return the answer, as soon as there is one.

        Raises:
            StorageAwayError: The storage did not come back.
            StorageError: It cannot do what it is asked for: its disk is full, above all.
        """
        patient = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_away),
            wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=2.0, jitter=0.5),
            stop=lambda state: (
                (state.seconds_since_start or 0.0) > (HALTING if self._stop_request.is_set() else PATIENCE)
            ),
            before_sleep=lambda state: self._waits(f"the storage is away ({_said(_error(state))}); waiting for it"),
            retry_error_callback=self._give_up,
        )
        try:
            return patient(ask)
        except (StorageInternalError, SQLAlchemyError, OSError) as error:
            raise StorageError(
                f"the storage{self._where} cannot be read or written ({_said(error)}). "
                "Mend that, and run the same command again to go on"
            ) from None

    def _give_up(self, state: tenacity.RetryCallState) -> NoReturn:
        raise StorageAwayError(
            f"the storage{self._where} was away for {state.seconds_since_start or 0:.0f} s ({_said(_error(state))}). "
            "Start it, and run the same command again to go on"
        ) from None


def _away(error: BaseException) -> bool:
    """Return whether a storage may answer if it is asked again."""
    if isinstance(error, StorageError):  # of the locks: their server cannot be reached
        return not isinstance(error, StorageAwayError | StorageGoneError | StorageHeldError)
    if isinstance(error, TimeoutError):  # a journal's lock
        return True
    cause = _cause(error)
    if type(cause).__module__ == "sqlite3":
        return any(word in str(cause) for word in ("locked", "busy"))
    kinds = {kind.__name__ for kind in type(cause).__mro__ if kind.__module__.startswith("psycopg")}
    return not kinds.isdisjoint({"OperationalError", "InterfaceError"}) and "DiskFull" not in kinds


def _cause(error: BaseException) -> BaseException:
    """Return what the driver of a database raised, out of what SQLAlchemy and Optuna put around it."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    return error.orig if isinstance(error, DBAPIError) and error.orig is not None else error


def _error(state: tenacity.RetryCallState) -> BaseException:
    assert state.outcome is not None
    error = state.outcome.exception()
    assert error is not None
    return error


def _said(error: BaseException) -> str:
    return hidden(str(_cause(error)).partition("\n")[0])
