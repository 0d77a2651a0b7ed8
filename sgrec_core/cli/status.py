"""The command that says how a home stands."""

import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from sgrec_core.cli.app import app, console
from sgrec_core.cli.homes import existing_home, valid_day
from sgrec_core.cli.views import COLOURS
from sgrec_core.settings import Settings

MOST_MISSING = 7
"""Missing nights that are named on the terminal."""


@app.command()
def status(
    day: Annotated[
        str | None, typer.Option(help="Judge this night, and show its every stage.", show_default=False)
    ] = None,
    nights: Annotated[int, typer.Option(min=1, help="How many of the latest nights to list.")] = 7,
    max_age_hours: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Exit with 1 also when the newest night's day ended more than so many hours ago.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object; docs/on-call.md has its keys.")] = False,
) -> None:
    """Recent nights, why the newest one stopped, whose it is and what to paste; champion, challenger, holds.

    Exit codes: 0 the newest night is good or runs, 1 it stopped, was killed or is missing, 2 bad usage, 4 it is amber.
    """
    from sgrec_core.quality.status import status_of_home

    settings = existing_home()
    day = valid_day(day) if day is not None else None
    found = status_of_home(settings, day=day, nights=nights, max_age_hours=max_age_hours)
    if as_json:
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        console.print(f"{settings.home} · {settings.input}", soft_wrap=True)
        console.print(stages_table(settings, day) if day and found["step"] else nights_table(found["nights"]))
        for line in lines_of(found):
            console.print(line, soft_wrap=True, markup=False)
    raise typer.Exit(found["exit_code"])


def nights_table(nights: list[dict[str, Any]]) -> Table:
    """The newest nights: how they ended, or which stage they are at."""
    table = Table(box=None)
    for name in ("day", "night", "stage", "time (UTC)", "verdict", "message", "stale"):
        table.add_column(name, no_wrap=name not in ("message", "stale"))
    for night in nights:
        mark = {"succeeded": "green", "stopped": "red", "unreadable": "red"}.get(night["state"], "yellow")
        verdict = f"[{COLOURS[night['verdict']]}]{night['verdict']}[/]" if night["verdict"] else ""
        moment = datetime.fromisoformat(night["ended"]).strftime("%m-%d %H:%M") if night["ended"] else ""
        stale = ", ".join(night["stale"])
        state = f"[{mark}]{night['state']}[/]"
        table.add_row(night["day"], state, night["step"], moment, verdict, escape(night["message"]), stale)
    return table


def stages_table(settings: Settings, day: str) -> Table:
    """Every stage and gate of a night."""
    from sgrec_core.lake import Lake
    from sgrec_core.night.changes import stale_stages
    from sgrec_core.quality.steps import read_failures, steps_of_night
    from sgrec_core.runtime.runs import last_runs

    stale = stale_stages(settings, day)
    table = Table(box=None)
    for name in ("stage", "state", "seconds", "message"):
        table.add_column(name, justify="right" if name == "seconds" else "left", no_wrap=name != "message")
    for step in steps_of_night(last_runs(Lake(settings.lake_root), day), read_failures(settings.reports(day))):
        seconds = "" if step.seconds is None or step.stale else f"{step.seconds:,.1f}"
        state = f"{step.state}, stale" if step.name in stale else step.state
        table.add_row(step.name, state, seconds, escape(step.message or ""))
    return table


def lines_of(found: dict[str, Any]) -> list[str]:
    """What stands below the table."""
    lines = []
    if found["cause"]:
        since = f" since {_clock(found['since'])}" if found["since"] else ""
        where = found["state"] if found["verdict"] == "red" else found["verdict"]
        where += f" at {found['step']}" if found["step"] else ""
        lines.append(f"night {found['day']} is {where}{since}: {found['cause']}")
        lines += [f"{name}: {found[name]}" for name in ("owner", "runbook", "command") if found[name]]
        lines += [f"also found: {text}" for text in found["consequences"]]
        lines.append(f"last good night: {found['last_good'] or 'none'}")
    if found["late"]:
        lines.append(f"the night after {found['day'] or 'the first'} is missing")
    if found["missing"]:
        more = len(found["missing"]) - MOST_MISSING
        named = ", ".join(found["missing"][:MOST_MISSING])
        lines.append(f"nights missing: {named}{f' and {more} more' if more > 0 else ''}")
    promotion = found["promotion"]
    if promotion["promoted"] is not None:
        what = (promotion["serves"] or "its challenger") if promotion["promoted"] else "nothing"
        lines.append(f"night {found['day']} promoted {what}")
    for alias in ("champion", "challenger"):
        lines.append(f"{alias}: {_in_words(found[alias], is_known=not found['problems'])}")
    if promotion["hold"]:
        lines.append(f"promotion is {promotion['hold']}")
    lines += [incident_in_words(incident) for incident in found["incidents"]]
    if found["judge"]:
        lines.append(f"judge accepted last {found['judge']}")
    return lines + [f"problem: {problem}" for problem in found["problems"]]


def incident_in_words(incident: dict[str, Any]) -> str:
    """An open incident in a line."""
    number, known = incident["incident"], incident["acknowledged"]
    line = f"incident {number}: {incident['kind']}, {incident['owner']}, since night {incident['first_night']}; "
    line += f"{known['by']} knows: {known['why']}" if known else f"nobody has said `sgrec incidents ack {number}`"
    return line + (f"; could not be told: {'; '.join(incident['problems'])}" if incident["problems"] else "")


def _in_words(generator: dict[str, Any] | None, *, is_known: bool) -> str:
    if generator is None:
        return "none yet" if is_known else "not known"
    made = f"version {generator['version']}, made by night {generator['day'] or 'unknown: MLflow has lost it'}"
    age = generator.get("age_days")
    return made + (f", {age} day{'' if age == 1 else 's'} before the newest night" if age else "")


def _clock(moment: str) -> str:
    return datetime.fromisoformat(moment).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
