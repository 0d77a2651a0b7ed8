"""What one raw row must be to enter the tables: parsing and validation of events, catalogue rows and profiles.

Everything here is pure Python on one row, so that Spark's executors, tests and a notebook do the same thing. Allowed
values and longest texts are read from the contracts; the rules that need the rest of the day (unknown items, repeated
ids) are applied by ``jobs.ingest_events`` on the rows accepted here.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sgrec_core.lake.contracts import load_contract
from sgrec_core.logs.adaptors import FILES as LEAVE_ONE_OUT
from sgrec_core.logs.columnar import GoodEvents
from sgrec_core.logs.fields import Fields, InvalidRowError, checked_text, shown
from sgrec_core.logs.landing import FOLDERS, MANIFEST, Landed, LeftOut, RawFile, Record, day_folder
from sgrec_core.logs.mapper import UPDATED, MappingError, mapper_of
from sgrec_core.logs.mapping import TARGETS, LogMapping
from sgrec_core.logs.readers import read_in_batches
from sgrec_core.logs.rows import GoodRows, Layout, Limits, Problem, Reading
from sgrec_core.logs.text import canonical_json, plain_json, storable
from sgrec_core.settings import IngestSettings, Settings

TABLES: dict[Record, str] = {"event": "events", "item": "items", "user": "users"}
LAYOUTS: Mapping[Record, Layout] = {
    "event": Layout(
        required=("event_id", "event_time", "user_id", "item_id", "event_type", "request_id"),
        known=tuple(column.name for column in load_contract("events").columns if column.name not in ("day", "role")),
    ),
    "item": Layout(
        required=("item_id",),
        known=TARGETS["item"],
    ),
    "user": Layout(required=("user_id",)),
}
"""Columns of raw rows; a profile is all that its row holds."""
NIGHT_RUNS_AT = timedelta(days=1, hours=2)
"""From the start of day D to the moment when its night runs: nothing can have happened later."""


def rules() -> list[list[object]]:
    """What the contracts say about values, which no digest of code can tell."""
    return [
        [table, column.name, column.allowed, column.max_length]
        for table in TABLES.values()
        for column in load_contract(table).columns
    ]


class Accepted(NamedTuple):
    """A row that is valid by itself: the columns of its table without ``day``."""

    line: int
    raw_text: str | None
    values: dict[str, Any]
    part: int = 0
    """Which of the rows that a mapping makes of one raw row."""
    session_minutes: float | None = None
    """What a mapping says: without a request, an event belongs to that of others until so long nothing comes."""
    updated: datetime | None = None
    """What a mapping says: when a property of an item got this value."""


class Rejected(NamedTuple):
    """A row of ``events_rejected`` without ``day``."""

    record: Record
    reason: str
    detail: str
    file: str
    line: int
    raw_text: str | None
    part: int = 0


@dataclass(frozen=True, kw_only=True)
class Options:
    """How raw rows are read, whatever they hold."""

    limits: Limits = Limits()
    nulls: frozenset[str] = frozenset(IngestSettings().null_words)
    """Texts that stand for no id and no number."""
    mapping: LogMapping | None = None
    with_roles: bool = False
    """Whether the column ``role`` says which events are labels, as it does in days that an adaptor has made."""

    @classmethod
    def of(cls, settings: Settings) -> "Options":
        ingest, mapping = settings.ingest, settings.mapping
        return cls(
            limits=Limits(line_bytes=ingest.max_line_bytes, raw_text=ingest.max_raw_text),
            nulls=frozenset(ingest.null_words),
            mapping=LogMapping.read(mapping) if mapping is not None else None,
            with_roles=settings.input.partition(":")[0] in LEAVE_ONE_OUT,
        )


def parse_file(file: RawFile, day: str, options: "Options", reading: Reading) -> Iterator[Accepted | Rejected]:
    """Every row of one raw file, each accepted or rejected, in the order of the file.

    Args:
        file: where it lies and what its rows should be.
        day: the night's day, YYYY-MM-DD; events of other days are rejected.
        reading: is told how the file ended, and how much of it was read.
    """
    for row in parse_file_in_batches(file, day, options, reading, None):
        assert not isinstance(row, GoodRows)
        yield row


def parse_file_in_batches(
    file: RawFile, day: str, options: "Options", reading: Reading, good: GoodEvents | None
) -> Iterator[Accepted | Rejected | GoodRows]:
    """Like `parse_file`; ``good`` takes batches of good rows out of JSON Lines and Parquet that no mapping changes."""
    parse = _parsers(day, options.with_roles)[file.record]
    try:
        mapper = mapper_of(options.mapping, file)
    except LookupError as error:
        reading.bytes, reading.ended, reading.detail = file.path.stat().st_size, "left_out", str(error)
        return
    layout = LAYOUTS[file.record] if mapper is None else mapper.layout
    if mapper is None and file.record == "event":
        known = (*(layout.known or ()), *(["role"] if options.with_roles else []))
        layout = replace(layout, known=known, good=good)

    def rejected(problem: Problem, line: int, raw_text: str | None, part: int = 0) -> Rejected:
        return Rejected(file.record, problem.reason, storable(problem.detail), file.name, line, raw_text, part)

    minutes = mapper.files.session_minutes if mapper is not None else None
    nowhere, has_fields = set(layout.required), False
    for row in read_in_batches(file.path, file.name, options.limits, layout, reading):
        if isinstance(row, GoodRows):
            if len(row.lines):
                nowhere.clear()
                yield row
            continue
        problem = row.problem
        if row.fields is not None:
            has_fields = True
            if nowhere:
                nowhere -= row.fields.keys()
            part = -1
            try:
                for part, fields in enumerate([row.fields] if mapper is None else list(mapper.rows(row.fields))):
                    found = _parse(parse, Fields(fields, row.loose, options.nulls, mapper))
                    if isinstance(found, Problem):
                        yield rejected(found, row.line, row.raw_text, part)
                    else:
                        yield Accepted(row.line, row.raw_text, found, part, minutes, fields.get(UPDATED))
            except MappingError as error:
                problem = error.problem
            else:
                reading.rows_empty += part < 0
                continue
        assert problem is not None, "a reader gives fields or a problem"
        yield rejected(problem, row.line, row.raw_text)
    if reading.ended == "complete" and has_fields and nowhere:
        reading.ended, reading.detail = "unreadable", f"no row has {', '.join(sorted(nowhere))}"
        reading.bytes_consumed = 0
        yield rejected(Problem("missing_field", reading.detail), 0, None)


def _parse(parse: Callable[["Fields"], dict[str, Any]], fields: "Fields") -> dict[str, Any] | Problem:
    try:
        return parse(fields)
    except InvalidRowError as error:
        return error.problem
    except Exception as error:  # a row of a kind that nobody has thought of must not end the night
        return Problem("invalid_value", f"cannot be read: {type(error).__name__}: {str(error)[:200]}")


def missing_files(landed: Landed, landing: Path, day: str) -> list[Rejected]:
    """One rejected row for each file that the day's manifest lists but the folder lacks (or for a broken manifest)."""
    path = day_folder(landing, day) / MANIFEST
    if not path.is_file():
        return []

    def rejected(reason: str, detail: str, name: str = MANIFEST) -> Rejected:
        record: Record = next((r for r, folder in FOLDERS.items() if name.startswith(folder + "/")), "event")
        return Rejected(record, reason, storable(detail), storable(name), 0, None)

    try:
        listed = json.loads(path.read_bytes())["files"]
        if not all(isinstance(name, str) for name in listed):
            raise TypeError("a file name is not text")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return [rejected("invalid_json", f'not a manifest like {{"files": ["events/part-0.jsonl"]}}: {error}')]
    present = {file.name for file in landed.files}
    return [
        rejected("missing_file", "listed in the manifest but not in the folder", name)
        for name in sorted(set(listed) - present)
    ]


def lost(one: LeftOut) -> Rejected:
    """The rejected row of something that should have been a file and is none."""
    return Rejected(one.record, "missing_file", storable(one.why), one.name, 0, None)


def item_hash(title: str | None, description: str | None, brand: str | None, category: str | None) -> str:
    """Hash of what a judge can read of an item; 16 hex characters. A new price is not a new item."""
    content = json.dumps([title, description, brand, category], ensure_ascii=False)
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


@cache
def _parsers(day: str, with_roles: bool) -> dict[Record, Callable[["Fields"], dict[str, Any]]]:
    start = datetime.combine(date.fromisoformat(day), datetime.min.time(), UTC)
    return {"event": lambda fields: _event(fields, start, with_roles), "item": _item, "user": _user}


def _event(fields: "Fields", start: datetime, with_roles: bool) -> dict[str, Any]:
    event_time = fields.time("event_time")
    if event_time > start + NIGHT_RUNS_AT:
        latest = (start + NIGHT_RUNS_AT).strftime("%Y-%m-%d %H:%M")
        detail = f"column event_time: {event_time.isoformat()} is later than the night, which runs at {latest} UTC"
        raise InvalidRowError("future_time", detail)
    if event_time.date() != start.date():
        other = event_time.date()
        detail = f"event of {other} in the logs of {start.date()}: put it with that day's logs and re-run night {other}"
        raise InvalidRowError("other_day", detail)
    return {
        "role": fields.one_of("role", "events", default="logged") if with_roles else "logged",
        "event_id": fields.event_id(),
        "event_time": event_time,
        "user_id": fields.identifier("user_id", "events", absent="anonymous"),
        "item_id": fields.identifier("item_id", "events"),
        "event_type": fields.one_of("event_type", "events", reason="unknown_event_type"),
        "request_id": None if fields.session_minutes else fields.identifier("request_id", "events"),
        "placement": fields.text("placement", "events"),
        "position": fields.whole_number("position"),
        "price": fields.amount("price"),
        "bid": fields.amount("bid"),
        "propensity": fields.probability("propensity"),
    }


def _item(fields: "Fields") -> dict[str, Any]:
    text = {name: fields.text(name, "items") for name in ("title", "description", "brand", "category")}
    return {
        "item_id": fields.identifier("item_id", "items"),
        **text,
        "price": fields.amount("price"),
        "supplied_codes": fields.codes("supplied_codes"),
        "item_hash": item_hash(**text),
    }


def _user(fields: "Fields") -> dict[str, Any]:
    """A profile is what the row's ``profile`` holds and everything that the row says beside it."""
    user_id = fields.identifier("user_id", "users")
    inner = fields.get("profile")
    if isinstance(inner, str):
        try:
            inner = json.loads(inner)
        except (ValueError, RecursionError) as error:
            raise InvalidRowError("invalid_json", f"column profile: {str(error)[:200]}") from error
    elif inner is None:
        inner = {}
    if not isinstance(inner, dict):
        raise InvalidRowError("wrong_type", f"column profile: {shown(inner)} is not a JSON object")
    try:
        profile = {name: value for name, value in plain_json(inner).items() if value is not None}
        beside = plain_json({name: value for name, value in fields.items() if name not in ("user_id", "profile")})
        for name, value in beside.items():
            if value not in (None, "") and profile.setdefault(name, value) != value:
                detail = (
                    f"column {name} says {shown(value)}, and profile {shown(profile[name])}; which one counts is not"
                )
                raise InvalidRowError("repeated_field", f"{detail} known")
        text = canonical_json(profile)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRowError("wrong_type", f"column profile: cannot be told as JSON: {str(error)[:200]}") from error
    return {"user_id": user_id, "profile": checked_text("profile", text, "users")}
