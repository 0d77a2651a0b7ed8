"""Nights as tables and lines on the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from sgrec_core.cli.app import console
from sgrec_core.evaluation.roles import CHAMPION, OPTIMISED, ROLES, SUPERVISED
from sgrec_core.files import read_json
from sgrec_core.settings import Settings
from sgrec_core.wording import metric, number, out_of_band, words

COLOURS = {"green": "green", "amber": "yellow", "red": "red"}
"""Of the verdicts, on a terminal."""


def read_summary(settings: Settings, day: str) -> dict[str, Any]:
    """What report_quality wrote about the night, or nothing if it never ran."""
    return read_json(
        settings.reports(day) / "summary.json",
        otherwise=f"no figures of that night are shown; `python -m jobs.report_quality --day {day}` writes it again",
    )


def show_summary(settings: Settings, day: str) -> None:
    """The night in one table."""
    summary = read_summary(settings, day)
    if not summary:
        return
    verdict = f", {summary['verdict']}" if summary.get("verdict") else ""
    table = Table(title=f"night {day}: {summary['status']}{verdict}", title_justify="left", show_header=False, box=None)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    rows, judge, reward, paths = summary["rows"], summary["judge"], summary["reward"], summary["paths"]
    table.add_row("rows", figures_in_words(rows, "in", "accepted", "rejected"))
    if rows.get("rejected_by_reason"):
        table.add_row("rejects", figures_in_words(rows["rejected_by_reason"], *rows["rejected_by_reason"]))
    label = f"judge calls ({judge['engine']}, scores meaningless)" if judge.get("meaningless") else "judge calls"
    table.add_row(label, figures_in_words(judge, "asked", "cached", "skipped", "paid"))
    table.add_row("fusion", figures_in_words(reward, "agreement_rate", "mean_gate", "covered_groups", "groups"))
    for role in ROLES:
        table.add_row(role, model_in_words(summary["evaluation"].get(role)))
    if summary["evaluation"].get("reason"):
        table.add_row("decision", escape(summary["evaluation"]["reason"]))
    for alarm in summary.get("alarms", []):
        table.add_row("metric", escape(alarm_in_words(alarm)))
    if summary["hold"]:
        table.add_row("promotion", escape(summary["hold"]))
    for note in summary["notes"]:
        table.add_row("note", escape(f"{note['stage']}: {note['text']}"))
    table.add_row("report", str(settings.home / paths["report"]))
    table.add_row("models", str(settings.home / paths["models"]))
    console.print(table)


def alarm_in_words(alarm: Mapping[str, Any]) -> str:
    """One metric out of its band in a line."""
    name = " ".join(filter(None, (alarm["metric"], alarm["dimension"])))
    words = out_of_band(name, alarm["value"], alarm["low"], alarm["high"])
    return f"{words} ({alarm['severity']}; owner {alarm['owner']})"


def figures_in_words(values: Mapping[str, Any], *names: str) -> str:
    """``accepted 1,234, rejected 5``; what a night did not get to is left out."""
    shown = [f"{words(name)} {number(values[name])}" for name in names if values.get(name) is not None]
    return ", ".join(shown) or "not reached"


def model_in_words(model: Mapping[str, Any] | None) -> str:
    if not model:
        return "none"
    # Popularity has the night's day for a version, which the title says already.
    name = "" if model["model"] == "popularity" else f"{model['model']} version {model['version']}: "
    return f"{name}HR@10 {metric(model['hr@10'])}, NDCG@10 {metric(model['ndcg@10'])}"


def evaluation_cells(settings: Settings, day: str) -> list[str]:
    """NDCG@10 of champion and candidates, and which of these was promoted."""
    evaluation = read_summary(settings, day).get("evaluation") or {}
    figures = [(evaluation.get(role) or {}).get("ndcg@10") for role in (CHAMPION, SUPERVISED, OPTIMISED)]
    promoted = evaluation.get("serves") or {True: "yes", False: "none", None: ""}[evaluation.get("promoted")]
    return [*("" if figure is None else metric(figure) for figure in figures), promoted]


def changes_table(settings: Settings, days: list[str]) -> Table:
    """What a backfill of ``days`` would compute, and why."""
    from sgrec_core.night.airflow import running_night
    from sgrec_core.night.changes import changes_of_night

    running = running_night(settings)
    title = f"backfill {days[0]} to {days[-1]} would compute"
    table = Table(title=title, title_justify="left", box=None)
    for name in ("day", "night", "computed", "why"):
        table.add_column(name, no_wrap=name in ("day", "night"))
    mark = {"new": "green", "stale": "yellow", "changed": "yellow", "unchanged": "dim"}
    changed = ""
    for day in days:
        if day == running:
            table.add_row(day, "running", "", "ask again when it has ended")
            changed = changed or day
            continue
        changes = changes_of_night(settings, day)
        # What a night makes is read by those after it.
        follows = f"follows {changed}, where that comes out otherwise" if changed and not changes else ""
        table.add_row(day, f"[{mark[changes.state]}]{changes.state}[/]", changes.computed, changes.why or follows)
        changed = changed or (day if changes else "")
    return table
