"""Commands that run nights."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from sgrec_core.errors import InputError
from sgrec_core.runtime.stages import STAGES
from sgrec_core.settings import Settings

if TYPE_CHECKING:
    from sgrec_core.night.airflow import Outcome

from sgrec_core.cli.app import Input, InterruptedNightError, Judge, Map, app, complain, console
from sgrec_core.cli.homes import days_between, default_day, existing_home, landed_days, settle_home, valid_day
from sgrec_core.cli.views import changes_table, evaluation_cells, read_summary, show_summary


@app.command()
def nightly(
    day: Annotated[
        str | None,
        typer.Option(
            help="Day of the logs, YYYY-MM-DD (UTC). Default: the newest landed day of logs:PATH, else the first day.",
            show_default=False,
        ),
    ] = None,
    source: Input = None,
    judge: Judge = None,
    mapping: Map = None,
    strict: Annotated[bool, typer.Option("--strict", help="An amber night exits with 1, as a red one does.")] = False,
    first: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Compute this stage and those behind it again, though they are up to date.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Compute again what is up to date: every stage, or those of --from.")
    ] = False,
) -> None:
    """Run the night of one day: logs in, a challenger registered, a report out. Unchanged stages are not run again.

    Exit codes: 0 green; 1 red, the night stopped; 4 amber: tables are published, but a critical metric is out of the
    band of the nights before, and promotion is held.
    """
    from sgrec_core.quality.alarms import AMBER, EXIT_CODES

    day = valid_day(day) if day is not None else None
    if first is not None and first not in (names := [stage.name for stage in STAGES]):
        raise InputError(f"--from {first!r} is no stage; valid are {', '.join(names)}")
    settings = settle_home(source, judge, mapping, starts_anew=True)
    day = day or default_day(settings)
    outcome = show_night(settings, day, force_from=first or (STAGES[0].name if force else None))
    written = settings.reports(day) / "summary.json"
    # One that is older than this run would tell of another.
    told = written.exists() and written.stat().st_mtime >= time.time() - outcome.seconds
    if told:
        show_summary(settings, day)
    summary = read_summary(settings, day) if told else {}
    cause = summary.get("cause") or {}
    if outcome.exit_code:
        # Of what no rule knows the night's own words say more: where its output is.
        is_known = cause.get("kind", "unknown") != "unknown" and summary["stopped_at"]
        why = f"{summary['stopped_at']}: {cause['reason']}" if is_known else outcome.reason
        complain(f"night {day} stopped at {why}")
        raise typer.Exit(1)
    if summary.get("verdict") == AMBER:
        complain(f"night {day} is amber: {cause.get('reason')}")
        raise typer.Exit(1 if strict else EXIT_CODES[AMBER])


@app.command()
def backfill(
    first: Annotated[str, typer.Option("--from", help="First day, YYYY-MM-DD.", show_default=False)],
    last: Annotated[str, typer.Option("--to", help="Last day, inclusive.", show_default=False)],
    source: Input = None,
    judge: Judge = None,
    mapping: Map = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Go over days of logs:PATH that have not landed.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Look at every stage, also of days that have not changed.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be computed, and why; compute nothing.")
    ] = False,
) -> None:
    """Run the nights of past days, in order; what is missing, stale (made by other code) or changed is computed.

    Exit codes: 0 all are green; 1 one stopped, the days after it were not run; 4 one is amber, which stops nothing.
    \f
    Eight parameters, because each is an option; what stands behind the form feed is no help text.
    """
    from sgrec_core.night.changes import changes_of_night
    from sgrec_core.quality.alarms import AMBER, EXIT_CODES

    days = list(days_between(valid_day(first), valid_day(last)))
    if dry_run and source is None:
        settings = existing_home(judge)
    else:
        settings = settle_home(source, judge, mapping, starts_anew=False)
    if skip_missing and settings.source == "logs":
        landed = landed_days(settings.input.partition(":")[2])
        missing = [day for day in days if day not in landed]
        days = [day for day in days if day in landed]
        for day in missing:
            console.print(f"[dim]·[/] night {day} skipped: no logs have landed")
    if dry_run:
        console.print(changes_table(settings, days))
        return
    table = Table(title=f"backfill {first} to {last}", title_justify="left", box=None)
    for name in (
        "day",
        "night",
        "seconds",
        "computed",
        "up to date",
        "champion NDCG@10",
        "supervised",
        "optimised",
        "promoted",
    ):
        table.add_column(name, justify="left" if name in ("day", "night", "promoted") else "right")
    stopped, amber = None, list[str]()
    for day in days:
        changes = changes_of_night(settings, day)
        if not force and not changes:
            console.print(f"[dim]·[/] night {day} unchanged")
            is_amber = read_summary(settings, day).get("verdict") == AMBER
            amber += [day] if is_amber else []
            state = "unchanged, [yellow]amber[/]" if is_amber else "unchanged"
            table.add_row(day, state, "", "0", "all", *evaluation_cells(settings, day))
            continue
        if changes.state in ("stale", "changed"):
            console.print(f"night {day} is {changes.state}: {changes.why}")
        outcome = show_night(settings, day)
        summary = read_summary(settings, day)
        states = [stage["state"] for stage in summary.get("stages", [])]
        is_amber = not outcome.exit_code and summary.get("verdict") == AMBER
        amber += [day] if is_amber else []
        ended = "[yellow]amber[/]" if is_amber else "succeeded"
        table.add_row(
            day,
            "[red]stopped[/]" if outcome.exit_code else ended,
            f"{outcome.seconds:,.0f}",
            str(states.count("finished")),
            str(states.count("skipped")),
            *evaluation_cells(settings, day),
        )
        if outcome.exit_code:
            # Later nights would start from a champion and a history that this one should have made.
            stopped = f"night {day} stopped at {outcome.reason}; the days after it were not run"
            break
    console.print(table)
    if amber:
        complain(f"amber: {', '.join(amber)}; nothing was promoted by them, their pages say why")
    if stopped:
        complain(stopped)
        raise typer.Exit(1)
    if amber:
        raise typer.Exit(EXIT_CODES[AMBER])


def show_night(settings: Settings, day: str, *, force_from: str | None = None) -> "Outcome":
    """Run the night of ``day`` before the user's eyes; ``force_from`` as in `run_night`.

    Raises:
        InterruptedNightError: by Ctrl-C or SIGTERM, after everything that the night had started has ended.
    """
    from sgrec_core.night.airflow import run_night

    console.print(f"night {day} · {settings.input} · home {settings.home}", soft_wrap=True)
    with interruptible(f"night {day}"):
        return run_night(settings, day, console, force_from=force_from)


@contextmanager
def interruptible(what: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM become an error in words.

    Raises:
        InterruptedNightError: it was interrupted.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedNightError(
            f"{what} interrupted; tables are at their last commit, the same command goes on from there"
        ) from None
