"""Repeating calls to a storage while it is away: its server restarts, or another process has locked its file."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, TypeVar

import tenacity
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from hpo.core.errors import StorageAwayError, StorageError, StorageGoneError, StorageHeldError, hidden
from hpo.core.interrupts import StopRequest
from hpo.storage.urls import redacted

LONGEST_WAIT = 600.0  # seconds to wait for a storage that is away
LONGEST_WAIT_WHEN_STOPPING = 5.0  # the same for a process that was asked to stop

Result = TypeVar("Result")


class Retry:
    """Repeats a call to a storage while the storage is away; only for calls that may safely be made twice.

    Args:
        url: URL of the storage, for messages.
        stop_request: Once it is set, the wait for a storage that is away is short.
        waits: Called with the reason before each wait.
    """

    def __init__(
        self, url: str | None, stop_request: StopRequest | None = None, waits: Callable[[str], None] | None = None
    ) -> None:
        self._where = "" if url is None else f" {redacted(url)}"
        self._stop_request, self._waits = stop_request or StopRequest(), waits or (lambda message: None)

    def __call__(self, call: Callable[[], Result]) -> Result:
        """Return the call's result, after as many attempts as it needs.

        Raises:
            StorageAwayError: The storage did not come back in time.
            StorageError: The storage has a problem that waiting does not solve, for example a full disk.
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_away),
            wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=2.0, jitter=0.5),
            stop=lambda state: (state.seconds_since_start or 0.0) > self._longest_wait(),
            before_sleep=lambda state: self._waits(f"the storage is away ({_reason(_error(state))}); waiting for it"),
            retry_error_callback=self._give_up,
        )
        try:
            return retrying(call)
        except (StorageInternalError, SQLAlchemyError, OSError) as error:
            raise StorageError(
                f"the storage{self._where} cannot be read or written ({_reason(error)}). "
                "Mend that, and run the same command again to go on"
            ) from None

    def _longest_wait(self) -> float:
        return LONGEST_WAIT_WHEN_STOPPING if self._stop_request.is_set() else LONGEST_WAIT

    def _give_up(self, state: tenacity.RetryCallState) -> NoReturn:
        raise StorageAwayError(
            f"the storage{self._where} was away for {state.seconds_since_start or 0:.0f} s ({_reason(_error(state))}). "
            "Start it, and run the same command again to go on"
        ) from None


def _is_away(error: BaseException) -> bool:
    """Return whether a storage may answer if the call is repeated."""
    if isinstance(error, StorageError):  # the server that holds the locks cannot be reached
        return not isinstance(error, StorageAwayError | StorageGoneError | StorageHeldError)
    if isinstance(error, TimeoutError):  # from a journal's lock
        return True
    cause = _cause(error)
    if type(cause).__module__ == "sqlite3":
        return any(word in str(cause) for word in ("locked", "busy"))
    kinds = {kind.__name__ for kind in type(cause).__mro__ if kind.__module__.startswith("psycopg")}
    return not kinds.isdisjoint({"OperationalError", "InterfaceError"}) and "DiskFull" not in kinds


def _cause(error: BaseException) -> BaseException:
    """Return the error of the database's driver, which SQLAlchemy and Optuna wrap."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    return error.orig if isinstance(error, DBAPIError) and error.orig is not None else error


def _error(state: tenacity.RetryCallState) -> BaseException:
    assert state.outcome is not None
    error = state.outcome.exception()
    assert error is not None
    return error


def _reason(error: BaseException) -> str:
    return hidden(str(_cause(error)).partition("\n")[0])
