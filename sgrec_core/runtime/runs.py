"""Runs of stages and of the gates behind them: rows of ``stage_runs``, which outlive a clean-up of Delta's log.

A run adds a row when it begins and one when it ends. Rows are only ever added, so that two jobs of one day do not
wait for each other; a run that was killed stays ``running``.
"""

import json
import math
import subprocess
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Any

import pyarrow as pa
from deltalake import QueryBuilder

from sgrec_core import __version__
from sgrec_core.lake import Lake, load_contract
from sgrec_core.runtime.stages import BY_NAME, STAGE_RUNS
from sgrec_core.settings import PROJECT_ROOT

DONE = ("finished", "skipped")
"""States of a run that came to its end."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_JSON = ("facts", "tables_read", "tables_written")


def git(*arguments: str) -> str | None:
    """What git says of the checkout that runs; None where it is none."""
    command = ["git", "-C", str(PROJECT_ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


@cache
def git_revision() -> str | None:
    """The revision of the checkout that runs; None where it is none."""
    return git("rev-parse", "HEAD")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run as far as it has come: a row of ``stage_runs``, whose contract says what each field is."""

    day: str
    stage: str
    input: str
    folder: str = ""
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    sequence: int = 0
    state: str = "running"
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    seconds: float = 0.0
    message: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    fingerprint: str | None = None
    code_digest: str | None = None
    tables_read: dict[str, int] = field(default_factory=dict)
    tables_written: dict[str, int] = field(default_factory=dict)
    sgrec_version: str = __version__
    git_revision: str | None = field(default_factory=git_revision)

    def ended(self, state: str, **what: Any) -> "Run":
        """The same run at its end, with what it can say by then."""
        seconds = max(0.0, round((datetime.now(UTC) - self.started).total_seconds(), 2))
        return replace(self, sequence=self.sequence + 1, state=state, seconds=seconds, **what)


def record(lake: Lake, runs: Iterable[Run]) -> None:
    """Add the runs, as they stand, to the table in one commit."""
    rows = []
    for run in runs:
        row = asdict(run)
        row |= {name: json.dumps(finite(row[name]), allow_nan=False, default=str) for name in _JSON}
        row |= {"day": date.fromisoformat(run.day), "message": run.message and _valid(run.message)}
        row["notes"] = [_valid(note) for note in run.notes]
        rows.append(row)
    lake.append(STAGE_RUNS, pa.Table.from_pylist(rows, schema=load_contract(STAGE_RUNS).arrow_schema))


def runs_of_day(lake: Lake, day: str, *, folder: str = "", stage: str | None = None) -> list[Run]:
    """All runs of the day, or those of one stage or gate: the last row of each, the oldest run first."""
    delta = lake.open(STAGE_RUNS)
    if delta is None:
        return []
    where = {"day": day, "folder": folder} | ({"stage": stage} if stage else {})
    conditions = " AND ".join(f"{name} = '{value}'" for name, value in where.items())
    # A row is a file until they are put together, and this reads many small files several times faster than Arrow.
    found = QueryBuilder().register("runs", delta).execute(f"SELECT * FROM runs WHERE {conditions} ORDER BY sequence")
    # Neither `pa.table` nor times as objects of Python: both import pandas, which takes longer than all the rest.
    rows = pa.RecordBatchReader.from_stream(found).read_all()
    started = rows.column_names.index("started")
    rows = rows.set_column(started, "started", rows["started"].cast(pa.int64()))
    newest = {row["run_id"]: row for row in rows.to_pylist()}
    return sorted(map(_run, newest.values()), key=lambda run: (run.started, run.run_id))


def last_runs(lake: Lake, day: str, *, folder: str = "") -> dict[str, Run]:
    """The newest run of each stage and gate of the day, whatever became of it."""
    return {run.stage: run for run in runs_of_day(lake, day, folder=folder)}


def last_done(lake: Lake, day: str, stage: str) -> Run | None:
    """The newest run of a stage that came to its end: its facts are those of what lies in the lake."""
    runs = runs_of_day(lake, day, folder=BY_NAME[stage].folder, stage=stage)
    return next((run for run in reversed(runs) if run.state in DONE), None)


def days_with_runs(lake: Lake) -> list[str]:
    """Days for which anything has run, the newest first."""
    return sorted({partition["day"] for partition in lake.partitions(STAGE_RUNS)}, reverse=True)


def compact_day(lake: Lake, day: str) -> None:
    """Put the day's rows, each a file of its own, into one file; reading many nights stays cheap."""
    delta = lake.open(STAGE_RUNS)
    if delta is not None:
        delta.optimize.compact(partition_filters=[("day", "=", day)])


def finite(value: Any) -> Any:
    """``value`` with null in place of what is no number: JSON has no other word for it."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _run(row: dict[str, Any]) -> Run:
    values = {one.name: row[one.name] for one in fields(Run)}
    started = _EPOCH + timedelta(microseconds=row["started"])
    return Run(
        **{**values, "day": str(row["day"]), "started": started, **{name: json.loads(row[name]) for name in _JSON}}
    )


def _valid(text: str) -> str:
    """Names of files may hold bytes that are no UTF-8, which a table cannot."""
    return text.encode("utf-8", "backslashreplace").decode()
