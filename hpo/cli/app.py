"""The command line: one function a command, no logic."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hpo.cli import guide
from hpo.cli.options import Json, Quiet, Set, Slots, Storage, StudyName
from hpo.cli.printing import conclude, console, end, interrupt, print_json, print_json_error, say
from hpo.core.errors import ConfigError, HpoError, Problem, hidden

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"hpo {metadata.version('hpo')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Tune the fine-tuning of a transformer: one command, a study you can trust."""


@app.command()
def run(
    study: StudyName,
    trials: Annotated[int | None, typer.Option(help="Trials of the study in all.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds after which to stop.")] = None,
    storage: Storage = None,
    slots: Slots = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that run the study together, one per GPU where there are GPUs.")
    ] = 1,
    executor: Annotated[str, typer.Option(help="Where they run: local, or ray for a Ray cluster.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="Address of the Ray cluster. Default: $RAY_ADDRESS, else this machine's cluster.")
    ] = None,
    warm_start: Annotated[
        list[str] | None,
        typer.Option(metavar="STUDY", help="An earlier study of the same space to learn from; may be repeated."),
    ] = None,
    set_: Set = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a study, or go on with it: the same command resumes."""
    from hpo.cli import live

    chosen = {"trials": trials, "timeout": timeout, "slots": slots, "warm_start": warm_start or None}
    with live.watched(quiet, as_json, "trials that ran") as watch:
        from hpo.cli import run_commands
        from hpo.cli.locate_study import study_to_run

        watch.doing(f"reading {study}")
        loaded, url = study_to_run(study, storage, set_ or [], chosen)
        if workers > 1 or executor != "local" or address is not None:
            given = [f"{key}={json.dumps(value)}" for key, value in chosen.items() if value is not None]
            sets = [*(set_ or []), *given]
            outcome = run_commands.run_together(loaded, url, watch, workers, study, sets, executor, address)
        else:
            outcome = run_commands.run(loaded, url, watch)
    conclude(outcome, as_json)


@app.command()
def worker(study: StudyName, storage: Storage = None, slots: Slots = None, set_: Set = None) -> None:
    """Join a study from any machine that reaches its storage, and run trials until none is left."""
    from hpo.cli import run_commands
    from hpo.cli.line_view import LineView
    from hpo.cli.locate_study import study_to_run

    given = storage or os.environ.get(run_commands.WORKER_STORAGE)
    loaded, url = study_to_run(study, given, set_ or [], {"slots": slots})
    signal.signal(signal.SIGTERM, interrupt)
    try:
        with LineView(Console()) as watch:
            failed = run_commands.work(loaded, url, watch)
    except KeyboardInterrupt:
        end("stopped; the trials that ran are put back", 130)
    if failed:
        raise typer.Exit(1)


@app.command()
def stop(
    study: StudyName,
    trial: Annotated[int | None, typer.Argument(min=0, metavar="[TRIAL]", help="End this running trial only.")] = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Ask all processes of a study, on any machine, to put their trials back and end; or end one running trial."""
    from hpo.cli import run_commands
    from hpo.cli.trial_commands import stop_trial

    if trial is not None:
        outcome = stop_trial(study, storage, trial)
    else:
        outcome = run_commands.stop(study, storage, lambda message: typer.echo(message, err=as_json))
    conclude(outcome, as_json)


@app.command()
def check(study: StudyName, storage: Storage = None, set_: Set = None, as_json: Json = False) -> None:
    """Validate a study file, its data and its model without training, and say what would run."""
    from hpo.cli import live, run_commands
    from hpo.cli.locate_study import study_to_run

    loaded, url = study_to_run(study, storage, set_ or [], {})
    with live.view(as_json, Console(stderr=True)):
        plan = run_commands.check(loaded, url)
    conclude(plan, as_json)


@app.command("list")
def list_(storage: Storage = None, as_json: Json = False) -> None:
    """List the studies of a storage."""
    from hpo.cli.inspect_commands import summaries
    from hpo.cli.study_text import study_table

    studies = summaries(storage)
    if as_json:
        print_json(studies)
    else:
        console().print(study_table(studies))


@app.command()
def show(
    study: StudyName,
    trial: Annotated[int | None, typer.Argument(min=0, metavar="[TRIAL]", help="Show this trial only.")] = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Show a study: its trials by state, its best trial, what to look at; or one trial and the pruner's decisions."""
    from hpo.cli.locate_study import results_of
    from hpo.cli.study_text import study_facts, study_text
    from hpo.cli.trial_text import trial_details, trial_facts, trial_of

    results = results_of(study, storage)
    if trial is not None:
        found = trial_of(results, trial)
        if as_json:
            print_json(trial_facts(found))
        else:
            typer.echo(trial_details(found, results))
    elif as_json:
        print_json(study_facts(results))
    else:
        say(study_text(results))


@app.command()
def trials(
    study: StudyName,
    storage: Storage = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, a line a trial.")] = False,
) -> None:
    """List the trials of a study."""
    from hpo.cli.locate_study import results_of
    from hpo.cli.study_text import trial_table
    from hpo.storage.snapshot_json import trial_json, trials_csv

    if as_json and as_csv:
        raise ConfigError("hpo trials", [Problem(("--csv",), "cannot be with --json; choose one of them")])
    results = results_of(study, storage)
    if as_json:
        print_json([trial_json(trial, curve=True) for trial in results.trials])
    elif as_csv:
        typer.echo(trials_csv(results), nl=False)
    else:
        typer.echo(trial_table(results))


@app.command()
def best(study: StudyName, storage: Storage = None, as_json: Json = False) -> None:
    """Print the best trial within the limits, and the front with the second metric."""
    from hpo.cli.inspect_commands import best_of
    from hpo.cli.locate_study import results_of
    from hpo.cli.study_text import front_json, front_text, settings_text, trial_text
    from hpo.storage.snapshot_json import trial_json

    results = results_of(study, storage)
    trial = best_of(results)
    if as_json:
        more = {"not_searched": results.not_searched(trial), "front": front_json(results)}
        print_json(trial_json(trial) | more)
    else:
        say(trial_text(trial, results))
        say(settings_text(trial, results))
        for line in front_text(results):
            typer.echo(line)


@app.command()
def compare(
    first: StudyName,
    second: Annotated[str | None, typer.Argument(metavar="[STUDY]", help="The study to compare it with.")] = None,
    samplers: Annotated[
        str | None, typer.Option(help="Run the one study with these samplers, and compare them: random,tpe,auto.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="With --samplers: seeds of each.")] = 1,
    storage: Storage = None,
    set_: Set = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="With --samplers: show the result only.")] = False,
    as_json: Json = False,
) -> None:
    """Compare two studies on the same test rows; or run one study with several samplers, and compare these."""
    if (second is None) == (samplers is None):
        raise ConfigError("hpo compare", [Problem((), "takes two studies, or one study and --samplers random,tpe,...")])
    if samplers is not None:
        guide.compare_samplers(first, samplers, seeds, storage, set_ or [], quiet, as_json)
        return
    assert second is not None
    from hpo.analysis.compare import compare as compared
    from hpo.analysis.compare import compared_text
    from hpo.cli.locate_study import results_of

    found = compared(results_of(first, storage), results_of(second, storage))
    print_json(found) if as_json else say(compared_text(found))


@app.command()
def report(
    study: StudyName,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write. Default: runs/STUDY/report.html.")
    ] = None,
    storage: Storage = None,
) -> None:
    """Write the report: one HTML file that needs no network."""
    from hpo.analysis.report import write
    from hpo.cli.locate_study import results_of
    from hpo.execution.study_setup import folder_of

    results = results_of(study, storage)
    notes: list[str] = []
    typer.echo(write(results, output or folder_of(results.name) / "report.html", notes.append))
    for note in notes:
        typer.echo(f"note: {note}", err=True)


@app.command()
def dashboard(
    study: Annotated[str | None, typer.Argument(metavar="[STUDY]", help="Open at this study.")] = None,
    storage: Storage = None,
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8080,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address only.")] = False,
    allow_edit: Annotated[
        bool, typer.Option("--allow-edit", help="Allow the dashboard to change and delete studies.")
    ] = False,
    host: Annotated[
        str, typer.Option(help="IP address to listen on. One that other machines reach needs $HPO_DASHBOARD_TOKEN.")
    ] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST[:PORT]", help="A further address by which browsers reach it, e.g. localhost:9000."),
    ] = None,
) -> None:
    """Open Optuna Dashboard on the storage; only the printed link gives access."""
    from hpo.cli import inspect_commands

    inspect_commands.dashboard(
        study,
        storage,
        port=port,
        open_browser=not no_browser,
        allow_edit=allow_edit,
        host=host,
        allow_hosts=allow_host or [],
    )


@app.command()
def export(
    study: StudyName,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    trial: Annotated[int | None, typer.Option(min=0, help="Number of the trial. Default: the best one.")] = None,
    confirmed: Annotated[
        bool, typer.Option("--confirmed", help="Take the confirmed configuration's run of median validation score.")
    ] = False,
    storage: Storage = None,
) -> None:
    """Write a trial's weights, the best one's by default, as a Hugging Face folder with a model card."""
    from hpo.cli.export import export as write

    written, warnings = write(study, storage, output, trial, confirmed=confirmed)
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(written)


@app.command()
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder that hpo export wrote, or a study's name.")],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts; for a model of pairs, two by two.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Rows to read: CSV, TSV, JSON, JSONL or Parquet.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="CSV or JSONL file to write. Default: JSONL on the screen.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="Column of the text. Default: the study's.")] = None,
    text_pair: Annotated[str | None, typer.Option(help="Column of the second text. Default: the study's.")] = None,
    storage: Storage = None,
) -> None:
    """Predict labels and their probabilities with an exported model, or with a study's best trial."""
    from hpo.cli.predict import find, refuse
    from hpo.cli.predict import run as predicted

    refuse(texts or [], file, output)
    source = find(model, storage)
    source = source.renamed(text=text, text_pair=text_pair)
    typer.echo(predicted(source, texts or [], file, output, Console(stderr=True)), nl=False)


app.command()(guide.confirm)
app.command()(guide.audit)
app.command()(guide.add)
app.command("next")(guide.next_)


def main() -> None:
    """Run the command line; an error that the user can correct is one message and exit code 2."""
    # Threads that wait by spinning take the cores of other processes. Must be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if any(hidden(word) != word for word in sys.argv[1:]):
        said = "everybody on this machine can see a password on the command line; put the URL into HPO_STORAGE"
        typer.echo(f"note: {said}, or the password into PGPASSWORD or ~/.pgpass", err=True)
    try:
        code = app(standalone_mode=False)
    except HpoError as error:
        say(f"error: {error}", err=True)
        print_json_error(str(error), error.problems if isinstance(error, ConfigError) else ())
        code = 2
    except Exception as error:
        code = _explain(error)
    sys.exit(code)


def _explain(error: Any) -> int:
    """Print typer's message about a command line, or the traceback of a defect, with passwords hidden."""
    if hasattr(error, "format_message"):
        error.message = hidden(error.message)
        error.show()
        print_json_error(error.format_message())
        return int(error.exit_code)
    aborted = isinstance(error, typer.Abort)
    typer.echo("Aborted!" if aborted else hidden(traceback.format_exc()), err=True)
    print_json_error("aborted" if aborted else hidden(f"{type(error).__name__}: {error}"))
    return 1


if __name__ == "__main__":
    main()
