"""Arguments that several commands take, as typer reads them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="A study file, or the name of a study in the storage.")]
Storage = Annotated[
    str | None,
    typer.Option(help="URL of the Optuna storage. Default: $HPO_STORAGE, what $HPO_STORAGE_FILE holds, else hpo.db."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show the result only.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the study file, e.g. --set data.rows=500."),
]


def slots_of(text: str) -> int | str:
    """Read a number of slots, or `auto`; the study file's checks refuse anything else."""
    return int(text) if text.isdecimal() else text


Slots = Annotated[Any, typer.Option(help="Trials that run at once in a process; auto measures.", parser=slots_of)]
