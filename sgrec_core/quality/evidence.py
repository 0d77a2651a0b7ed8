"""What a night left behind, as far as it tells why the night is not green: rows of small tables, and raw files' heads.

A glance: it imports no pandas, and of large tables it counts alone.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake.exceptions import DeltaError

from sgrec_core.errors import SgrecError
from sgrec_core.lake import Lake
from sgrec_core.lake.damage import Damage, damage_of
from sgrec_core.lake.queries import ask, days_until
from sgrec_core.quality.alarms import Alarm
from sgrec_core.quality.steps import Step
from sgrec_core.quality.validation import TableResult
from sgrec_core.runtime.runs import DONE, STAGE_RUNS
from sgrec_core.runtime.stages import BY_NAME, STAGES, Stage
from sgrec_core.settings import Settings

UNREADABLE = (OSError, ValueError, KeyError, DeltaError, pa.ArrowException, SgrecError)
"""What a lost or damaged table raises."""
INGEST = STAGES[0].name
MOST_FILES = 20
"""Raw files whose columns are looked at."""
BESIDE = ("promotions", "night_metrics")
"""Tables that a stage reads or writes beside those that the list of stages names."""


@dataclass(frozen=True, kw_only=True)
class RawFileRead:
    """A row of ``ingest_files``."""

    path: str
    record: str
    bytes: int
    bytes_consumed: int
    rows_seen: int
    rows_accepted: int
    rows_rejected: int
    rows_unread: int
    ended: str
    detail: str | None


@dataclass(frozen=True, kw_only=True)
class Rejects:
    """Rejected rows of one kind in one file."""

    record: str
    reason: str
    file: str
    column: str | None
    absent: bool
    """Whether the row lacks the column, rather than has something wrong or nothing there."""
    detail: str
    """Of one of them; of all, where they are of an unknown type."""
    rows: int


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of a night that is not green."""

    day: str
    step: Step | None
    """Where it stopped; None where it came to its end."""
    failure: Mapping[str, Any] = field(default_factory=dict)
    """The scheduler's word of the step."""
    results: Sequence[TableResult] = ()
    alarms: Sequence[Alarm] = ()
    inherited: Sequence[Alarm] = ()
    files: Sequence[RawFileRead] = ()
    rejects: Sequence[Rejects] = ()
    events: Mapping[str, int] | None = None
    """By type; None where the night published none."""
    items: int | None = None
    items_before: int | None = None
    """Of the newest earlier day."""
    items_shared: int | None = None
    """Of them, how many the day still has."""
    damage: Sequence[Damage] = ()
    unknown_columns: Callable[[Sequence[str]], list[str]] = lambda names: []
    """Columns that nobody reads, of the raw files that are named."""
    new_columns: Callable[[Sequence[str]], list[str]] = lambda names: []
    """Of them, those that files of the newest earlier day did not have; none where no such day is there."""
    variables: Mapping[str, str | None] = field(default_factory=dict)
    """Settings that differ from their defaults."""
    lake: str = ""


def raw_evidence(settings: Settings, lake: Lake, day: str) -> dict[str, Any]:
    """What ``ingest_events``, which came to its end, counted of the raw files and published."""
    before = max((one["day"] for one in lake.partitions("items") if one["day"] < day), default=None)
    events = ask(lake, "events", f"SELECT event_type, count(*) AS n FROM rows WHERE day = '{day}' GROUP BY event_type")
    return {
        "files": [RawFileRead(**row) for row in ask(lake, "ingest_files", _FILES.format(day=day))],
        "rejects": [Rejects(**row) for row in ask(lake, "events_rejected", _REJECTS.format(day=day))],
        "events": {row["event_type"]: row["n"] for row in events},
        **(ask(lake, "items", _ITEMS.format(day=day, before=before or day)) or [{}])[0],
        **({} if before else {"items_before": None, "items_shared": None}),
        "unknown_columns": lambda names: _unknown_columns(settings, day, names),
        "new_columns": lambda names: _new_columns(settings, day, names),
    }


_FILES = """
SELECT path, record, bytes, bytes_consumed, rows_seen, rows_accepted, rows_rejected, rows_unread, ended, detail
FROM rows WHERE day = '{day}' ORDER BY path, record
"""
_REJECTS = """
SELECT record, reason, file, regexp_match(detail, '^column ([a-z_]+)')[1] AS column,
    detail LIKE '%is missing' AS absent, min(detail) AS detail, count(*) AS rows
FROM rows WHERE day = '{day}' AND line > 0
GROUP BY record, reason, file, regexp_match(detail, '^column ([a-z_]+)')[1], detail LIKE '%is missing',
    CASE WHEN reason = 'unknown_event_type' THEN detail ELSE '' END
ORDER BY rows DESC, file
"""
_ITEMS = """
WITH today AS (SELECT DISTINCT item_id FROM rows WHERE day = '{day}'),
    before AS (SELECT DISTINCT item_id FROM rows WHERE day = '{before}')
SELECT (SELECT count(*) FROM today) AS items, (SELECT count(*) FROM before) AS items_before,
    (SELECT count(*) FROM today JOIN before ON today.item_id = before.item_id) AS items_shared
"""


def _unknown_columns(settings: Settings, day: str, names: Sequence[str]) -> list[str]:
    """Of raw files that are still there."""
    from sgrec_core.logs.checking import unknown_columns
    from sgrec_core.logs.landing import landed
    from sgrec_core.logs.parsing import Options

    try:
        options = Options.of(settings)
        there = [one for one in landed(_landing(settings), day, needs_catalogue=False).files if one.name in names]
        return list(dict.fromkeys(name for one in there[:MOST_FILES] for name in unknown_columns(one, options)))
    except UNREADABLE:  # whatever is wrong with the files by now, the night's own words stand
        return []


def _new_columns(settings: Settings, day: str, names: Sequence[str]) -> list[str]:
    """Compared with the files of the same folders of the newest earlier day."""
    from sgrec_core.logs.landing import landed

    days = sorted(path.name.removeprefix("day=") for path in _landing(settings).glob("day=*"))
    before = next((one for one in reversed(days) if one < day), None)
    if before is None:
        return []
    folders = {name.partition("/")[0] for name in names}
    with suppress(*UNREADABLE):
        files = [one.name for one in landed(_landing(settings), before, needs_catalogue=False).files]
        known = set(_unknown_columns(settings, before, [one for one in files if one.partition("/")[0] in folders]))
        return [name for name in _unknown_columns(settings, day, names) if name not in known]
    return []


def _landing(settings: Settings) -> Path:
    """Where raw files lie, or lay."""
    from sgrec_core.logs.adaptors import parse_source

    source = parse_source(settings.input)
    return source.path if source.kind == "logs" and source.path else settings.home.resolve() / "landing" / source.kind


def damage_before(lake: Lake, settings: Settings, day: str, step: str) -> list[Damage]:
    """What is lost of the tables that the step reads, or has to write to, the first in the order of the night first."""
    stage = BY_NAME[step.removeprefix("check_")]
    tables = [table for one in STAGES for table in one.publishes if _meets(stage, table)]
    days = days_until(day, max(settings.states.history_days, settings.business.window_days))
    question = f"""
        SELECT DISTINCT CAST(day AS VARCHAR) AS day, stage, tables_written FROM rows
        WHERE folder = '' AND state IN {DONE} AND day >= '{days[0]}' AND day <= '{day}'
    """
    runs = ask(lake, STAGE_RUNS, question)
    found: list[Damage] = []
    for table in [*tables, *BESIDE]:
        publisher = next((one.name for one in STAGES if table in one.publishes), None)
        whole = {run["day"] for run in runs if run["stage"] == f"check_{publisher}"}
        found += damage_of(lake, table, written=_newest_version(runs, table), days=whole)
    read = {*days, None}
    return [one for one in found if one.day in read]


def _meets(stage: Stage, table: str) -> bool:
    return table in stage.reads or table in stage.publishes


def _newest_version(runs: Sequence[Mapping[str, Any]], table: str) -> int | None:
    versions = [json.loads(run["tables_written"]).get(table) for run in runs]
    return max((version for version in versions if version is not None), default=None)
