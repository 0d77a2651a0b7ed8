"""The values of one raw row, each read as what its column wants, or the reason why not."""

import hashlib
import json
import math
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from sgrec_core.lake.contracts import load_contract
from sgrec_core.logs.mapper import Mapper
from sgrec_core.logs.rows import Problem, Unreadable

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class InvalidRowError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = Problem(reason, detail)


class Fields:
    """The values of one row, each read as what its column wants, or `InvalidRowError`."""

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
            raise InvalidRowError(value.problem.reason, f"column {name}: {value.problem.detail}")
        if isinstance(value, bytes):
            # Some writers of Parquet do not say that their bytes are text.
            try:
                return value.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InvalidRowError("invalid_encoding", f"column {name}: {shown(value)} is not UTF-8") from error
        return None if self._loose and value == "" else value

    def items(self) -> Iterator[tuple[str, Any]]:
        """All values; bytes as they are, which need be no text."""
        return ((name, value if isinstance(value, bytes) else self.get(name)) for name, value in self._values.items())

    def required(self, name: str, reason: str = "missing_field") -> Any:
        value = self._or_none(name)
        if value is None:
            is_there = name in self._values
            said = f"{shown(self._values[name])} stands for nothing" if is_there else "is missing"
            raise InvalidRowError(reason, f"column {name}: {said}" if is_there else f"column {name} {said}")
        return value

    def _or_none(self, name: str) -> Any:
        value = self.get(name)
        return None if isinstance(value, str) and (value in self._nulls or not value) else value

    def identifier(self, name: str, table: str, *, absent: str = "missing_field") -> str:
        """An id: text without spaces around it, or a whole number as text; ``absent`` is the reason where none is."""
        value = self.required(name, absent)
        if isinstance(value, float) and value == value:
            whole = value.is_integer() and abs(value) < 2**53
            hint = "; ids are text or whole numbers: was a column with gaps read as numbers?" if whole else ""
            raise InvalidRowError("wrong_type", f"column {name}: {shown(value)} is not text{hint}")
        if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value) if abs(value) < 10**30 else value
        text = checked_text(name, _text(name, value), table).strip(" ")
        if not text:
            raise InvalidRowError(absent, f"column {name}: {shown(value)} stands for nothing")
        if not text.isprintable():
            detail = f"column {name}: {shown(text)} holds control characters; valid are printable ones"
            raise InvalidRowError("invalid_value", detail)
        return text

    def text(self, name: str, table: str) -> str | None:
        value = self.get(name)
        return None if value is None else checked_text(name, _text(name, value), table)

    def one_of(self, name: str, table: str, *, default: str | None = None, reason: str = "invalid_value") -> str:
        value = self.get(name)
        if value is None and default is not None:
            return default
        text = _text(name, self.required(name))
        allowed = load_contract(table).column(name).allowed or ()
        if text not in allowed:
            raise InvalidRowError(reason, f"column {name}: {shown(text)}; valid are {', '.join(allowed)}")
        return text

    def amount(self, name: str) -> float | None:
        value = self._number(name)
        if value is None:
            return None
        amount = float(value) if abs(value) < 1e300 else math.inf
        if not (0 <= amount < math.inf):
            raise InvalidRowError("invalid_value", f"column {name}: {shown(value)}; valid is a number of at least 0")
        return amount

    def probability(self, name: str) -> float | None:
        """Of something that happened: above 0."""
        value = self._number(name)
        if value is None:
            return None
        if not 0 < value <= 1:
            detail = f"column {name}: {shown(value)}; valid is a number above 0 and at most 1"
            raise InvalidRowError("invalid_value", detail)
        return float(value)

    def whole_number(self, name: str) -> int | None:
        value = self._number(name)
        if value is None:
            return None
        if not (0 <= value < 2**31 and value == int(value)):
            detail = f"column {name}: {shown(value)}; valid is a whole number from 0 to {2**31 - 1}"
            raise InvalidRowError("invalid_value", detail)
        return int(value)

    def codes(self, name: str) -> list[int] | None:
        """A semantic id: a list of whole numbers; in CSV its JSON text."""
        value = self.get(name)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise InvalidRowError("wrong_type", f"column {name}: {shown(value)} is not a JSON list") from error
        if value is None:
            return None
        if not isinstance(value, list) or not all(type(code) is int for code in value):
            raise InvalidRowError("wrong_type", f"column {name}: {shown(value)} is not a list of whole numbers")
        if not value or not all(0 <= code < 2**31 for code in value):
            detail = f"column {name}: {shown(value)}; valid are one or more numbers of at least 0"
            raise InvalidRowError("invalid_value", detail)
        return value

    def time(self, name: str) -> datetime:
        """A moment in UTC: ISO 8601 (without a zone it is UTC), or milliseconds since 1970."""
        value = self.required(name)
        try:
            if isinstance(value, str):
                value = value.strip(" ")
                if len(value) == len("2026-01-05") and value[4] == "-" and date.fromisoformat(value):
                    detail = f"column {name}: {shown(value)} is a date without a time of day; a mapping with its format"
                    raise InvalidRowError("invalid_value", f"{detail} takes it for midnight (docs/input.md)")
                value = int(value) if value.isascii() and value.isdigit() else datetime.fromisoformat(value)
            if isinstance(value, Decimal):
                value = float(value)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                if unit := _unit(value):
                    detail = f"column {name}: {shown(value)} looks like {unit}; valid are milliseconds since 1970"
                    raise InvalidRowError("invalid_value", f"{detail}, a mapping reads others (docs/input.md)")
                return EPOCH + timedelta(milliseconds=value)
            if isinstance(value, datetime):
                return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        except (ValueError, OverflowError) as error:
            valid = "ISO 8601 like 2026-01-05T10:00:00Z, or milliseconds since 1970"
            detail = f"column {name}: {shown(value)} is no time; valid is {valid}"
            raise InvalidRowError("invalid_value", detail) from error
        raise InvalidRowError("wrong_type", f"column {name}: {shown(value)} is neither text nor a number")

    def _number(self, name: str) -> int | float | None:
        value = self._or_none(name)
        if value is None:
            return None
        if self._loose and isinstance(value, str):
            try:
                value = float(value.replace("_", "x"))  # Python reads 1_000, other tools do not
            except ValueError as error:
                raise InvalidRowError("wrong_type", f"column {name}: {shown(value)} is not a number") from error
        if isinstance(value, Decimal):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InvalidRowError("wrong_type", f"column {name}: {shown(value)} is not a number")
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidRowError("invalid_value", f"column {name}: {value}; valid is a finite number")
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
    if 19_800_101_000_000 <= value <= 21_001_231_235_959 and value == int(value):
        try:
            return f"the time {datetime.strptime(str(int(value)), '%Y%m%d%H%M%S')} in digits"
        except ValueError:
            return None
    for unit, about in moments.items():
        # From 1980 to 2160; milliseconds of these years lie between.
        if 0.3 * about <= value <= 6 * about:
            return f"{unit} since 1970, {EPOCH + timedelta(seconds=value / (about / 1e9)):%Y-%m-%d %H:%M}"
    return None


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidRowError("wrong_type", f"column {name}: {shown(value)} is not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can spell half a surrogate pair, which no UTF-8 table can hold.
        raise InvalidRowError("invalid_encoding", f"column {name} holds half a surrogate pair") from error
    return value


def checked_text(name: str, text: str, table: str) -> str:
    longest = load_contract(table).column(name).max_length
    if longest is not None and len(text) > longest:
        detail = f"column {name} has {len(text):,} characters; valid is at most {longest:,}"
        raise InvalidRowError("too_long", detail)
    return _text(name, text)


def shown(value: object) -> str:
    """A value in an error message: short, and quoted if it is text."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"a whole number of {value.bit_length()} bits"
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
