"""What the commands print: text that fits the terminal, JSON, and errors in both forms."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console

from hpo.core.errors import Problem, hidden

if TYPE_CHECKING:
    from hpo.cli.run_commands import Outcome


def console() -> Console:
    """Return a console; if the output is no terminal, wide enough that no column is cut."""
    return Console(width=None if sys.stdout.isatty() else 250)


def say(text: str, *, err: bool = False) -> None:
    """Print text; on a terminal, lines are broken between words, where the terminal itself would break words."""
    if (sys.stderr if err else sys.stdout).isatty():
        from hpo.core.formatting import wrapped

        text = wrapped(text, shutil.get_terminal_size().columns)
    typer.echo(text, err=err)


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False, default=str))


def conclude(outcome: Outcome, as_json: bool) -> None:
    """Print the outcome of a command, and end with exit code 1 if failures have stopped the study."""
    if as_json:
        print_json(outcome.json)
    else:
        say(outcome.text)
    if outcome.stopped_by_failures:
        raise typer.Exit(1)


def interrupt(*_: object) -> NoReturn:
    """Handle a signal as Ctrl-C."""
    raise KeyboardInterrupt


def end(message: str, code: int) -> NoReturn:
    """Print a message, and end the command with an exit code."""
    say(message, err=True)
    print_json_error(message)
    raise typer.Exit(code)


def print_json_error(message: str, problems: Sequence[Problem] = ()) -> None:
    """With `--json`, print an error as JSON too, so that the standard output always has one JSON value."""
    if "--json" in sys.argv[1:]:
        found = [{"path": list(p.path), "line": p.line, "message": hidden(p.message)} for p in problems]
        print_json({"error": message, "problems": found})
