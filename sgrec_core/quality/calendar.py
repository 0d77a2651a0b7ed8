"""All nights on one page: ``reports/index.html``, a calendar by verdict, and ``reports/latest.html``.

It is made of the nights' ``summary.json`` alone, so it opens no table; a night whose report was never written is a day
without a verdict.
"""

import calendar
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from re import fullmatch
from typing import Any

from sgrec_core.files import read_json, write_text
from sgrec_core.quality.environment import page_environment
from sgrec_core.settings import Settings

TEMPLATE, LATEST = "calendar.html.jinja", "latest.html.jinja"
MONTHS = 12
"""Months that are shown, the newest first."""
OPEN_NIGHTS = 7
"""The newest nights whose problems count as open."""


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A night as its summary tells of it."""

    day: str
    verdict: str
    stopped_at: str | None
    owner: str | None
    reason: str | None
    """Of its first cause; None of a green night."""
    learns_from: str | None
    """The amber day that alone makes it amber."""

    @property
    def in_words(self) -> str:
        return f"{self.verdict}, stopped at {self.stopped_at}" if self.stopped_at else self.verdict


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong since when, told by one or more of the newest nights."""

    owner: str
    reason: str
    nights: list[str]
    """The newest first."""


def reported_nights(reports: Path) -> list[Reported]:
    """Nights with a summary, the newest first."""
    days = sorted((path.name for path in reports.glob("*-*-*") if _is_day(path.name)), reverse=True)
    found = []
    for day in days:
        told = read_json(reports / day / "summary.json", otherwise="the calendar leaves this night out")
        # Summaries of before have no verdict.
        verdict = told.get("verdict") or {"succeeded": "green", "stopped": "red"}.get(str(told.get("status")))
        if verdict in ("green", "amber", "red"):
            cause = told.get("cause") or {}
            found.append(
                Reported(
                    day=day,
                    verdict=verdict,
                    stopped_at=told.get("stopped_at"),
                    owner=cause.get("owner"),
                    reason=cause.get("reason"),
                    learns_from=cause.get("day") if cause.get("kind") == "learns_from_amber" else None,
                )
            )
    return found


def last_green(nights: Sequence[Reported], day: str) -> str | None:
    """The newest green night before ``day``."""
    return next((night.day for night in nights if night.day < day and night.verdict == "green"), None)


def neighbours(nights: Sequence[Reported], day: str) -> tuple[str | None, str | None]:
    """The reported nights before and behind ``day``."""
    before = next((night.day for night in nights if night.day < day), None)
    behind = next((night.day for night in reversed(nights) if night.day > day), None)
    return before, behind


def open_problems(nights: Sequence[Reported]) -> list[Problem]:
    """Causes of the newest nights since the last green one, by owner.

    Nights of the same words, or that learn from the same amber day, have one problem: in the words of the newest.
    """
    found: dict[tuple[str, str], list[Reported]] = {}
    for night in nights[:OPEN_NIGHTS]:
        if night.verdict == "green":
            break
        key = (night.owner or "nobody", night.learns_from or night.reason or night.in_words)
        found.setdefault(key, []).append(night)
    problems = [
        Problem(owner=owner, reason=same[0].reason or same[0].in_words, nights=[night.day for night in same])
        for (owner, _), same in found.items()
    ]
    return sorted(problems, key=lambda problem: problem.owner)


def months(nights: Sequence[Reported]) -> list[dict[str, Any]]:
    """Months with a night, the newest first: ``name`` and ``weeks`` of seven (date or None, night or None)."""
    by_day = {night.day: night for night in nights}
    found = sorted({night.day[:7] for night in nights}, reverse=True)[:MONTHS]
    shown = []
    for month in found:
        year, of_year = (int(part) for part in month.split("-"))
        weeks = [
            [(one, by_day.get(one.isoformat())) if one.month == of_year else (None, None) for one in week]
            for week in calendar.Calendar().monthdatescalendar(year, of_year)
        ]
        shown.append({"name": f"{calendar.month_name[of_year]} {year}", "weeks": weeks})
    return shown


def write_calendar(settings: Settings) -> Path:
    """Write both pages from what the nights of this home have reported; return that of the calendar."""
    reports = settings.home.resolve() / "reports"
    nights = reported_nights(reports)
    environment, page = page_environment(), reports / "index.html"
    written = datetime.now(UTC).replace(microsecond=0)
    text = environment.get_template(TEMPLATE).render(
        nights=nights, months=months(nights), problems=open_problems(nights), input=settings.input, written=written
    )
    write_text(page, text)
    if nights:
        write_text(reports / "latest.html", environment.get_template(LATEST).render(night=nights[0]))
    return page


def _is_day(name: str) -> bool:
    try:
        return fullmatch(r"\d{4}-\d{2}-\d{2}", name) is not None and bool(date.fromisoformat(name))
    except ValueError:
        return False
