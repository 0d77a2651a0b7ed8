"""What one raw row must be to enter the tables: parsing and validation of events, catalogue rows and profiles.

Everything here is pure Python on one row, so that Spark's executors, tests and a notebook do the same thing. Allowed
values and longest texts are read from the contracts; the rules that need the rest of the day (unknown items, repeated
ids) are applied by ``jobs.ingest_events`` on the rows accepted here.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sgrec_core.lake.contracts import load_contract
from sgrec_core.logs.landing import FOLDERS, MANIFEST, Landed, LeftOut, RawFile, Record, day_folder
from sgrec_core.logs.mapping import UPDATED, LogMapping, Mapper, MappingError
from sgrec_core.logs.readers import read_rows
from sgrec_core.logs.rows import Layout, Limits, Problem, Reading, Unreadable
from sgrec_core.settings import IngestSettings

TABLES: dict[Record, str] = {"event": "events", "item": "items", "user": "users"}
LAYOUTS: Mapping[Record, Layout] = {
    "event": Layout(
        required=("event_id", "event_time", "user_id", "item_id", "event_type", "request_id"),
        known=tuple(column.name for column in load_contract("events").columns if column.name != "day"),
    ),
    "item": Layout(
        required=("item_id",),
        known=("item_id", "title", "description", "brand", "category", "price", "supplied_codes"),
    ),
    "user": Layout(required=("user_id",)),
}
"""Columns of raw rows; a profile is all that its row holds."""
NIGHT_RUNS_AT = timedelta(days=1, hours=2)
"""From the start of day D to the moment when its night runs: nothing can have happened later."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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
    """What a mapping says: without a request, an event belongs to the same as others until so long nothing comes."""
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

    @classmethod
    def of(cls, settings: IngestSettings) -> "Options":
        limits = Limits(line_bytes=settings.max_line_bytes, raw_text=settings.max_raw_text)
        mapping = LogMapping.read(settings.mapping) if settings.mapping is not None else None
        return cls(limits=limits, nulls=frozenset(settings.null_words), mapping=mapping)


class _InvalidRowError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = Problem(reason, detail)


def parse_file(file: RawFile, day: str, options: "Options", reading: Reading) -> Iterator[Accepted | Rejected]:
    """Every row of one raw file, each accepted or rejected, in the order of the file.

    Args:
        file: where it lies and what its rows should be.
        day: the night's day, YYYY-MM-DD; events of other days are rejected.
        reading: is told how the file ended, and how much of it was read.
    """
    parse = _parsers(day)[file.record]
    try:
        mapper = options.mapping.of(file) if options.mapping is not None else None
    except LookupError as error:
        reading.bytes, reading.ended, reading.detail = file.path.stat().st_size, "left_out", str(error)
        return
    layout = LAYOUTS[file.record] if mapper is None else mapper.layout

    def rejected(problem: Problem, line: int, raw_text: str | None, part: int = 0) -> Rejected:
        return Rejected(file.record, problem.reason, storable(problem.detail), file.name, line, raw_text, part)

    minutes = mapper.files.session_minutes if mapper is not None else None
    nowhere, has_fields = set(layout.required), False
    for row in read_rows(file.path, file.name, options.limits, layout, reading):
        problem = row.problem
        if row.fields is not None:
            has_fields = True
            if nowhere:
                nowhere -= row.fields.keys()
            part = -1
            try:
                for part, fields in enumerate([row.fields] if mapper is None else list(mapper.rows(row.fields))):
                    found = _parse(parse, _Fields(fields, row.loose, options.nulls, mapper))
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
        yield rejected(Problem("missing_field", reading.detail), 0, None)


def _parse(parse: Callable[["_Fields"], dict[str, Any]], fields: "_Fields") -> dict[str, Any] | Problem:
    try:
        return parse(fields)
    except _InvalidRowError as error:
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


def canonical_json(values: dict[str, Any]) -> str:
    """JSON whose text depends on the content alone: sorted keys, no spaces, characters as they are."""
    return json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


@cache
def _parsers(day: str) -> dict[Record, Callable[["_Fields"], dict[str, Any]]]:
    start = datetime.combine(date.fromisoformat(day), datetime.min.time(), UTC)
    return {"event": lambda fields: _event(fields, start), "item": _item, "user": _user}


def _event(fields: "_Fields", start: datetime) -> dict[str, Any]:
    event_time = fields.time("event_time")
    if event_time > start + NIGHT_RUNS_AT:
        latest = (start + NIGHT_RUNS_AT).strftime("%Y-%m-%d %H:%M")
        detail = f"column event_time: {event_time.isoformat()} is later than the night, which runs at {latest} UTC"
        raise _InvalidRowError("future_time", detail)
    if event_time.date() != start.date():
        other = event_time.date()
        detail = f"event of {other} in the logs of {start.date()}: put it with that day's logs and re-run night {other}"
        raise _InvalidRowError("other_day", detail)
    return {
        "role": fields.one_of("role", "events", default="logged"),
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


def _item(fields: "_Fields") -> dict[str, Any]:
    text = {name: fields.text(name, "items") for name in ("title", "description", "brand", "category")}
    return {
        "item_id": fields.identifier("item_id", "items"),
        **text,
        "price": fields.amount("price"),
        "supplied_codes": fields.codes("supplied_codes"),
        "item_hash": item_hash(**text),
    }


def _user(fields: "_Fields") -> dict[str, Any]:
    """A profile is everything that a row says beside the user's id, or what its ``profile`` holds."""
    user_id = fields.identifier("user_id", "users")
    profile = fields.get("profile")
    if profile is None:
        profile = {name: value for name, value in fields.items() if name != "user_id"}
    elif isinstance(profile, str):
        try:
            profile = json.loads(profile)
        except (ValueError, RecursionError) as error:
            raise _InvalidRowError("invalid_json", f"column profile: {str(error)[:200]}") from error
    if not isinstance(profile, dict):
        raise _InvalidRowError("wrong_type", f"column profile: {_shown(profile)} is not a JSON object")
    try:
        text = canonical_json({str(name): value for name, value in profile.items() if value not in (None, "")})
    except (TypeError, ValueError, RecursionError) as error:
        raise _InvalidRowError("wrong_type", f"column profile: cannot be told as JSON: {str(error)[:200]}") from error
    return {"user_id": user_id, "profile": _checked_text("profile", text, "users")}


class _Fields:
    """The values of one row, each read as what its column wants, or `_InvalidRowError`."""

    def __init__(
        self, values: dict[str, Any], loose: bool, nulls: frozenset[str], mapper: Mapper | None = None
    ) -> None:
        self._values, self._loose, self._nulls = values, loose, nulls
        self.session_minutes = mapper.files.session_minutes if mapper is not None else None
        self._has_ids = mapper is None or "event_id" in mapper.files.columns

    def event_id(self) -> str:
        """As logged; where a mapping names none, a hash of the event."""
        if self._has_ids:
            return self.identifier("event_id", "events")
        told = json.dumps(self._values, sort_keys=True, default=str)
        return hashlib.blake2b(told.encode("utf-8", "backslashreplace"), digest_size=12).hexdigest()

    def get(self, name: str) -> Any:
        """The value; None too for text that stands for nothing, which is more in a file of text alone."""
        value = self._values.get(name)
        if isinstance(value, Unreadable):
            raise _InvalidRowError(value.problem.reason, f"column {name}: {value.problem.detail}")
        if isinstance(value, bytes):
            # Some writers of Parquet do not say that their bytes are text.
            try:
                return value.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _InvalidRowError("invalid_encoding", f"column {name}: {_shown(value)} is not UTF-8") from error
        return None if self._loose and value == "" else value

    def items(self) -> Iterator[tuple[str, Any]]:
        return ((name, self.get(name)) for name in self._values)

    def required(self, name: str, reason: str = "missing_field") -> Any:
        value = self._or_none(name)
        if value is None:
            is_there = name in self._values
            said = f"{_shown(self._values[name])} stands for nothing" if is_there else "is missing"
            raise _InvalidRowError(reason, f"column {name}: {said}" if is_there else f"column {name} {said}")
        return value

    def _or_none(self, name: str) -> Any:
        value = self.get(name)
        return None if isinstance(value, str) and (value in self._nulls or not value) else value

    def identifier(self, name: str, table: str, *, absent: str = "missing_field") -> str:
        """An id: text, or a whole number told as text. ``absent`` is the reason where there is none."""
        value = self.required(name, absent)
        if isinstance(value, float) and value == value:
            whole = value.is_integer() and abs(value) < 2**53
            hint = "; ids are text or whole numbers: was a column with gaps read as numbers?" if whole else ""
            raise _InvalidRowError("wrong_type", f"column {name}: {_shown(value)} is not text{hint}")
        if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value) if abs(value) < 10**30 else value
        text = _checked_text(name, _text(name, value), table)
        if not text.isprintable():
            detail = f"column {name}: {_shown(text)} holds control characters; valid are printable ones"
            raise _InvalidRowError("invalid_value", detail)
        return text

    def text(self, name: str, table: str) -> str | None:
        value = self.get(name)
        return None if value is None else _checked_text(name, _text(name, value), table)

    def one_of(self, name: str, table: str, *, default: str | None = None, reason: str = "invalid_value") -> str:
        value = self.get(name)
        if value is None and default is not None:
            return default
        text = _text(name, self.required(name))
        allowed = load_contract(table).column(name).allowed or ()
        if text not in allowed:
            raise _InvalidRowError(reason, f"column {name}: {_shown(text)}; valid are {', '.join(allowed)}")
        return text

    def amount(self, name: str) -> float | None:
        value = self._number(name)
        if value is None:
            return None
        amount = float(value) if abs(value) < 1e300 else math.inf
        if not (0 <= amount < math.inf):
            raise _InvalidRowError("invalid_value", f"column {name}: {_shown(value)}; valid is a number of at least 0")
        return amount

    def probability(self, name: str) -> float | None:
        """Of something that happened: above 0."""
        value = self._number(name)
        if value is None:
            return None
        if not 0 < value <= 1:
            detail = f"column {name}: {_shown(value)}; valid is a number above 0 and at most 1"
            raise _InvalidRowError("invalid_value", detail)
        return float(value)

    def whole_number(self, name: str) -> int | None:
        value = self._number(name)
        if value is None:
            return None
        if not (0 <= value < 2**31 and value == int(value)):
            detail = f"column {name}: {_shown(value)}; valid is a whole number from 0 to {2**31 - 1}"
            raise _InvalidRowError("invalid_value", detail)
        return int(value)

    def codes(self, name: str) -> list[int] | None:
        """A semantic id: a list of whole numbers; in CSV its JSON text."""
        value = self.get(name)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise _InvalidRowError("wrong_type", f"column {name}: {_shown(value)} is not a JSON list") from error
        if value is None:
            return None
        if not isinstance(value, list) or not all(type(code) is int for code in value):
            raise _InvalidRowError("wrong_type", f"column {name}: {_shown(value)} is not a list of whole numbers")
        if not value or not all(0 <= code < 2**31 for code in value):
            detail = f"column {name}: {_shown(value)}; valid are one or more numbers of at least 0"
            raise _InvalidRowError("invalid_value", detail)
        return value

    def time(self, name: str) -> datetime:
        """A moment in UTC: ISO 8601 (without a zone it is UTC), or milliseconds since 1970."""
        value = self.required(name)
        try:
            if isinstance(value, str):
                value = int(value) if value.isascii() and value.isdigit() else datetime.fromisoformat(value)
            if isinstance(value, Decimal):
                value = float(value)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                if unit := _unit(value):
                    detail = f"column {name}: {_shown(value)} looks like {unit}; valid are milliseconds since 1970"
                    raise _InvalidRowError("invalid_value", f"{detail}, a mapping reads others (docs/input.md)")
                return EPOCH + timedelta(milliseconds=value)
            if isinstance(value, datetime):
                return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        except (ValueError, OverflowError) as error:
            valid = "ISO 8601 like 2026-01-05T10:00:00Z, or milliseconds since 1970"
            detail = f"column {name}: {_shown(value)} is no time; valid is {valid}"
            raise _InvalidRowError("invalid_value", detail) from error
        raise _InvalidRowError("wrong_type", f"column {name}: {_shown(value)} is neither text nor a number")

    def _number(self, name: str) -> int | float | None:
        value = self._or_none(name)
        if value is None:
            return None
        if self._loose and isinstance(value, str):
            try:
                value = float(value.replace("_", "x"))  # Python reads 1_000, other tools do not
            except ValueError as error:
                raise _InvalidRowError("wrong_type", f"column {name}: {_shown(value)} is not a number") from error
        if isinstance(value, Decimal):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _InvalidRowError("wrong_type", f"column {name}: {_shown(value)} is not a number")
        if isinstance(value, float) and not math.isfinite(value):
            raise _InvalidRowError("invalid_value", f"column {name}: {value}; valid is a finite number")
        return value


def _unit(value: float) -> str | None:
    """What a number that is told as a time is more likely than milliseconds since 1970."""
    moments = {"seconds": 1e9, "microseconds": 1e15, "nanoseconds": 1e18}
    if 19_000_101 <= value <= 21_001_231 and value == int(value):
        text = str(int(value))
        try:
            date(int(text[:4]), int(text[4:6]), int(text[6:]))
        except ValueError:
            return None
        return f"the date {text[:4]}-{text[4:6]}-{text[6:]} without a time of day"
    for unit, about in moments.items():
        # From 1980 to 2160; milliseconds of these years lie between.
        if 0.3 * about <= value <= 6 * about:
            return f"{unit} since 1970, {EPOCH + timedelta(seconds=value / (about / 1e9)):%Y-%m-%d %H:%M}"
    return None


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _InvalidRowError("wrong_type", f"column {name}: {_shown(value)} is not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can spell half a surrogate pair, which no UTF-8 table can hold.
        raise _InvalidRowError("invalid_encoding", f"column {name} holds half a surrogate pair") from error
    return value


def _checked_text(name: str, text: str, table: str) -> str:
    longest = load_contract(table).column(name).max_length
    if longest is not None and len(text) > longest:
        detail = f"column {name} has {len(text):,} characters; valid is at most {longest:,}"
        raise _InvalidRowError("too_long", detail)
    return _text(name, text)


def _shown(value: object) -> str:
    """A value in an error message: short, and quoted if it is text."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"a whole number of {value.bit_length()} bits"
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def storable(text: str) -> str:
    """``text`` as any UTF-8 table can hold it: what is no text is written out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
