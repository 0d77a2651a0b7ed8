"""How a home stands: its newest nights, why the last one stopped, who serves, and what is missing.

It reads small tables and files and imports neither torch, MLflow nor pandas: people, and a cron every few minutes,
wait for it. Nothing is written but what puts MLflow right.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
from deltalake.exceptions import DeltaError

from sgrec_core.errors import SgrecError
from sgrec_core.files import read_json
from sgrec_core.judge.versions.accepted import accepted_judges
from sgrec_core.lake import Lake, load_contract
from sgrec_core.night.airflow import running_night
from sgrec_core.night.changes import stale_stages
from sgrec_core.night.display import Tail
from sgrec_core.quality.alarms import AMBER, EXIT_CODES, GREEN, RED
from sgrec_core.quality.commands import sgrec
from sgrec_core.quality.incidents import TABLE as INCIDENTS
from sgrec_core.quality.incidents import Incidents
from sgrec_core.quality.night import At, state_of_night, why_red
from sgrec_core.quality.steps import Step
from sgrec_core.registry.glance import Known, champion_and_challenger
from sgrec_core.registry.promotions import TABLE as PROMOTIONS
from sgrec_core.registry.promotions import Decision, Promotions, held
from sgrec_core.runtime.runs import days_with_runs, last_runs
from sgrec_core.runtime.stages import JUDGE_TRAINING_FOLDER, STAGE_RUNS
from sgrec_core.settings import Settings

UNREADABLE = (OSError, ValueError, DeltaError, pa.ArrowException, SgrecError)
"""What a lost or damaged table raises."""
LOOKED_BACK = 30
"""Nights among which the last good one is looked for."""


@dataclass(frozen=True, kw_only=True)
class NightState:
    """A night in a line."""

    day: str
    state: str
    """``succeeded``, ``stopped``, ``unfinished`` (killed, or run by another Airflow), ``running`` or ``unreadable``."""
    step: str
    ended: datetime | None
    message: str
    verdict: str | None
    """``green``, ``amber`` or ``red``; None while it runs."""
    at: At | None
    """None before its first stage."""


def status_of_home(
    settings: Settings, *, day: str | None = None, nights: int = 7, max_age_hours: float | None = None
) -> dict[str, Any]:
    """What `sgrec status --json` prints; docs/on-call.md says what the keys mean.

    Args:
        day: the night that is judged; by default the newest.
        nights: how many of the newest are listed.
        max_age_hours: from so many hours after the end of the newest night's day the next one counts as missing.

    Raises:
        SgrecError: no stage of the night of ``day`` has run.
    """
    lake, problems = Lake(settings.lake_root), list[str]()
    running = running_night(settings)
    try:
        days = days_with_runs(lake)
    except UNREADABLE as error:
        days = []
        problems.append(_lost(STAGE_RUNS, error))
    is_lost = bool(problems)
    if running is not None and running not in days:
        days = sorted([*days, running], reverse=True)
    listed = _first(nights, _nights(settings, lake, days, running))
    judged = _judged(settings, lake, running, day) if day else (listed[0] if listed else None)
    decisions = _decisions(lake, problems)
    champion, challenger = _generators(settings, decisions, problems)
    newest = listed[0].day if listed else None
    late = max_age_hours is not None and is_late(newest, max_age_hours)
    code = EXIT_CODES.get(judged.verdict or GREEN, 1) if judged else int(is_lost)
    hold = held(decisions)
    return {
        "home": str(settings.home.resolve()),
        "input": settings.input,
        "day": judged.day if judged else None,
        "state": judged.state if judged else "unreadable" if is_lost else "none",
        "verdict": judged.verdict if judged else None,
        **_why(settings, lake, judged),
        "last_good": last_good(settings, lake, days, running),
        "promotion": {**_promotion(settings, judged), "hold": None if hold is None else str(hold)},
        "champion": champion and {**_of(champion), "age_days": _days_between(champion.day, newest)},
        "challenger": challenger and _of(challenger),
        "judge": _judge(settings, problems),
        "running": running,
        "missing": _missing(days),
        "late": late,
        "nights": [
            {
                "day": night.day,
                "state": night.state,
                "verdict": night.verdict,
                "step": night.step,
                "ended": night.ended.isoformat() if night.ended else None,
                "message": night.message,
                "stale": list(stale_stages(settings, night.day)) if night.at else [],
            }
            for night in listed
        ],
        "incidents": _open_incidents(lake, problems),
        "problems": problems,
        "exit_code": 1 if late else code,
    }


def _nights(settings: Settings, lake: Lake, days: list[str], running: str | None) -> Iterator[NightState]:
    """The newest first; of a day for which nothing but the judge's training has run there is none."""
    for day in days:
        try:
            at = state_of_night(settings, lake, day)
        except UNREADABLE as error:
            lost = _lost(STAGE_RUNS, error)
            yield NightState(day=day, state="unreadable", step="", ended=None, message=lost, verdict=RED, at=None)
            continue
        if day == running:
            step = _step_that_runs(settings, lake, day, at)
            message = progress_in_words(settings, day, step.name)
            yield NightState(
                day=day, state="running", step=step.name, ended=step.ended, message=message, verdict=None, at=at
            )
        elif at is not None:
            yield NightState(
                day=day,
                state=at.state,
                step=at.step.name,
                ended=at.step.ended,
                message=at.step.message or "",
                verdict=_verdict(settings, day, at),
                at=at,
            )


def _judged(settings: Settings, lake: Lake, running: str | None, day: str) -> NightState:
    night = next(_nights(settings, lake, [day], running), None)
    if night is None:
        raise SgrecError(f"no stage of night {day} has run in {settings.home}; `sgrec status` lists the nights")
    return night


def _step_that_runs(settings: Settings, lake: Lake, day: str, at: At | None) -> Step:
    """What the process that holds the home is at; ``starting`` while no stage has begun since it took it."""
    began = os.stat(settings.home.resolve() / "night.lock").st_mtime
    if at is not None and at.step.started and at.step.started.timestamp() >= int(began):
        return at.step
    training = last_runs(lake, day, folder=JUDGE_TRAINING_FOLDER).values()
    newest = max(training, key=lambda run: run.started, default=None)
    if newest is not None and newest.started.timestamp() >= int(began):
        return Step(name=newest.stage, state=newest.state, started=newest.started)
    return Step(name="starting", state="running")


def progress_in_words(settings: Settings, day: str, stage: str) -> str:
    """What the stage that runs has said last for the terminal: ``ranking 1,200/5,000``."""
    events = Tail(settings.reports(day) / "progress.jsonl", from_start=True).read()
    last: dict[str, Any] = next((event for event in reversed(events) if event.get("stage") == stage), {})
    done, total = last.get("done"), last.get("total")
    return " ".join([last.get("description") or "", f"{done:,}/{total:,}" if total else ""]).strip()


def _verdict(settings: Settings, day: str, at: At) -> str:
    """What the summary says of a night that came to its end; of another one the summary may be older than it."""
    if at.state != "succeeded":
        return RED
    return str(_summary(settings, day).get("verdict") or GREEN)


def _summary(settings: Settings, day: str) -> dict[str, Any]:
    return read_json(settings.reports(day) / "summary.json", otherwise="its verdict and promotion are not shown")


def _promotion(settings: Settings, night: NightState | None) -> dict[str, Any]:
    """What the night decided; nulls where it did not get there, or runs."""
    evaluation = {} if night is None or night.verdict is None else _summary(settings, night.day).get("evaluation") or {}
    return {name: evaluation.get(name) for name in ("promoted", "serves", "reason")}


def _why(settings: Settings, lake: Lake, night: NightState | None) -> dict[str, Any]:
    """Why the night is not green, since when, whose it is and what to paste; nulls where it is, or runs."""
    told: dict[str, Any] = {}
    if night is not None and night.verdict not in (GREEN, None):
        if night.at is None:
            told = _runs_are_lost(settings, night)
        elif night.at.state == "succeeded":
            # What its page says: metrics that were accepted since do not make it another night.
            told = _summary(settings, night.day).get("cause") or {}
        else:
            cause = why_red(settings, lake, night.day, night.at)
            told = cause.told() if cause else {}
    return {
        # Of a night that is not whole the first step that did not end well, which need not be the last that began.
        "step": told.get("step") or (night and night.step),
        "cause": told.get("reason") or (night.message if night and night.verdict == RED else None) or None,
        **{name: told.get(name) for name in ("since", "owner", "runbook", "command")},
        "consequences": told.get("consequences") or [],
    }


def _runs_are_lost(settings: Settings, night: NightState) -> dict[str, Any]:
    """Of a night whose runs cannot be read nothing else is known."""
    contract = load_contract(STAGE_RUNS)
    return {
        "reason": night.message,
        "owner": contract.owner,
        "runbook": f"Restore {settings.lake_root}/{STAGE_RUNS} from a backup; the command says what else is lost.",
        "command": sgrec(settings, "doctor"),
    }


def last_good(settings: Settings, lake: Lake, days: list[str], running: str | None = None) -> str | None:
    """The first of ``days``, the newest first, whose night was green or amber."""
    nights = _nights(settings, lake, days[:LOOKED_BACK], running)
    return next((night.day for night in nights if night.verdict in (GREEN, AMBER)), None)


def _decisions(lake: Lake, problems: list[str]) -> list[Decision]:
    try:
        return Promotions(lake).read()
    except UNREADABLE as error:
        problems.append(_lost(PROMOTIONS, error))
        return []


def _open_incidents(lake: Lake, problems: list[str]) -> list[dict[str, Any]]:
    try:
        return [one.as_json() for one in Incidents(lake).read() if one.is_open]
    except UNREADABLE as error:
        problems.append(_lost(INCIDENTS, error))
        return []


def _lost(table: str, error: Exception) -> str:
    return f"table {table} could not be read: {' '.join(str(error).split())}"


def _generators(
    settings: Settings, decisions: list[Decision], problems: list[str]
) -> tuple[Known | None, Known | None]:
    try:
        return champion_and_challenger(settings, decisions)
    except SgrecError as error:
        problems.append(str(error))
        return None, None


def _of(generator: Known) -> dict[str, Any]:
    return {"version": generator.version, "day": generator.day}


def _judge(settings: Settings, problems: list[str]) -> str | None:
    try:
        judges = accepted_judges(settings)
    except SgrecError as error:
        problems.append(str(error))
        return None
    return f"({judges[-1].how}, {judges[-1].day}): {judges[-1]}" if judges else None


def _missing(days: list[str]) -> list[str]:
    """Days between the first and the newest for which nothing has run."""
    if not days:
        return []
    first, last = date.fromisoformat(days[-1]), date.fromisoformat(days[0])
    between = ((first + timedelta(days=offset)).isoformat() for offset in range((last - first).days))
    return [day for day in between if day not in set(days)]


def is_late(newest: str | None, hours: float) -> bool:
    """Whether the day of the newest night ended more than so many hours ago; where there is none the first is late."""
    if newest is None:
        return True
    end = datetime.combine(date.fromisoformat(newest) + timedelta(days=1), datetime.min.time(), UTC)
    return datetime.now(UTC) > end + timedelta(hours=hours)


def _days_between(first: str | None, last: str | None) -> int | None:
    return (date.fromisoformat(last) - date.fromisoformat(first)).days if first and last else None


def _first(count: int, nights: Iterator[NightState]) -> list[NightState]:
    return [night for night, _ in zip(nights, range(count), strict=False)]
