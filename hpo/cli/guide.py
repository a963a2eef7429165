"""The commands that guide a study: add a trial, confirm, audit, compare samplers, write the next study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpo.cli.options import Json, Quiet, Storage, StudyName
from hpo.cli.printing import conclude, say


def confirm(
    study: StudyName,
    top: Annotated[int, typer.Option(min=1, help="Best configurations to train again, besides the default.")] = 3,
    seeds: Annotated[int, typer.Option(help="Fresh seeds for each configuration.")] = 5,
    storage: Storage = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train the best configurations and the published default again with fresh seeds, and say whether one wins."""
    from hpo.cli import live

    with live.watched(quiet, as_json, "runs under way") as watch:
        from hpo.cli.confirm import confirm as confirmed

        watch.doing(f"reading {study}")
        outcome = confirmed(study, storage, top, seeds, watch)
    conclude(outcome, as_json)


def audit(
    study: StudyName,
    trials: Annotated[
        int, typer.Option("--trials", "-n", min=1, help="Pruned trials to train to their end; all if there are fewer.")
    ] = 10,
    storage: Storage = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a random sample of pruned trials to their end, and say what pruning cost."""
    from hpo.cli import live

    with live.watched(quiet, as_json, "runs under way") as watch:
        from hpo.cli.audit import audit as audited

        watch.doing(f"reading {study}")
        outcome = audited(study, storage, trials, watch)
    conclude(outcome, as_json)


def add(
    study: StudyName,
    values: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...", help="Parameters; the sampler draws others.")],
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Put a trial of your own into a study; a value outside what is searched is allowed."""
    from hpo.cli.trial_commands import add as added

    outcome = added(study, storage, values)
    conclude(outcome, as_json)


def next_(
    study: StudyName,
    output: Annotated[Path, typer.Option("--output", "-o", help="Study file to write.")],
    storage: Storage = None,
) -> None:
    """Write the file of the next study, with ranges moved to where the trials show the optimum to be."""
    from hpo.cli.trial_commands import write_next

    say(write_next(study, storage, output).text)


def compare_samplers(
    study: str, samplers: str, seeds: int, storage: str | None, sets: list[str], quiet: bool, as_json: bool
) -> None:
    """Run a study with several samplers, and say how they compare at equal cost."""
    from hpo.cli import live

    with live.watched(quiet, as_json, "trials that ran") as watch:
        from hpo.cli.samplers import compare

        watch.doing(f"reading {study}")
        outcome = compare(study, storage, sets, samplers, seeds, watch)
    conclude(outcome, as_json)
