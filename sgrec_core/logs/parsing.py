"""What one raw row must be to enter the tables: parsing and validation of events, catalogue rows and profiles.

Everything here is pure Python on one row, so that Spark's executors, tests and a notebook do the same thing. Allowed
values and longest texts are read from the contracts; the rules that need the rest of the day (unknown items, repeated
ids) are applied by ``jobs.ingest_events`` on the rows accepted here.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sgrec_core.lake.contracts import load_contract
from sgrec_core.logs.landing import FOLDERS, MANIFEST, RawFile, Record, day_folder, raw_files
from sgrec_core.logs.readers import Limits, Problem, RawRow, read_rows

TABLES: dict[Record, str] = {"event": "events", "item": "items", "user": "users"}
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


class Rejected(NamedTuple):
    """A row of ``events_rejected`` without ``day``."""

    record: Record
    reason: str
    detail: str
    file: str
    line: int
    raw_text: str | None


class _InvalidRowError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = Problem(reason, detail)


def parse_file(file: RawFile, day: str, limits: Limits) -> Iterator[Accepted | Rejected]:
    """Every row of one raw file, each accepted or rejected, in the order of the file.

    Args:
        file: where it lies and what its rows should be.
        day: the night's day, YYYY-MM-DD; events of other days are rejected.
        limits: bounds on a row's size.
    """
    parse = _parsers(day)[file.record]
    for row in read_rows(file.path, file.name, limits):
        problem = row.problem
        if row.fields is not None:
            try:
                yield Accepted(row.line, row.raw_text, parse(_Fields(row)))
                continue
            except _InvalidRowError as error:
                problem = error.problem
        assert problem is not None, "a reader gives fields or a problem"
        yield Rejected(file.record, problem.reason, storable(problem.detail), file.name, row.line, row.raw_text)


def missing_files(landing: Path, day: str) -> list[Rejected]:
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
    present = {file.name for file in raw_files(landing, day)}
    return [
        rejected("missing_file", "listed in the manifest but not in the folder", name)
        for name in sorted(set(listed) - present)
    ]


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
        "event_id": fields.identifier("event_id", "events"),
        "event_time": event_time,
        "user_id": fields.identifier("user_id", "events"),
        "item_id": fields.identifier("item_id", "events"),
        "event_type": fields.one_of("event_type", "events", reason="unknown_event_type"),
        "request_id": fields.identifier("request_id", "events"),
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

    def __init__(self, row: RawRow) -> None:
        assert row.fields is not None
        self._values = row.fields
        self._loose = row.loose

    def get(self, name: str) -> Any:
        value = self._values.get(name)
        return None if self._loose and value == "" else value

    def items(self) -> Iterator[tuple[str, Any]]:
        return iter(self._values.items())

    def required(self, name: str) -> Any:
        value = self.get(name)
        if value is None or value == "":
            raise _InvalidRowError("missing_field", f"column {name} is missing")
        return value

    def identifier(self, name: str, table: str) -> str:
        """An id: text, or a whole number told as text."""
        value = self.required(name)
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
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return EPOCH + timedelta(milliseconds=value)
            if isinstance(value, datetime):
                return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        except (ValueError, OverflowError) as error:
            valid = "ISO 8601 like 2026-01-05T10:00:00Z, or milliseconds since 1970"
            detail = f"column {name}: {_shown(value)} is no time; valid is {valid}"
            raise _InvalidRowError("invalid_value", detail) from error
        raise _InvalidRowError("wrong_type", f"column {name}: {_shown(value)} is neither text nor a number")

    def _number(self, name: str) -> int | float | None:
        value = self.get(name)
        if value is None:
            return None
        if self._loose:
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
