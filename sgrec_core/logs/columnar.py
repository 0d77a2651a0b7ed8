"""Events whole columns at a time: rows that are plainly good, as `sgrec_core.logs.parsing` would make them.

Anything else than the plainest is left to the row by row way, which knows the words for what is wrong.
"""

from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core.lake.contracts import load_contract

IDS = ("event_id", "user_id", "item_id", "request_id")
AMOUNTS = ("price", "bid", "propensity")
ISO = r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}:\d{2}(\.\d{1,6})?(Z|[+-]\d{2}:\d{2})?$"
"""The times that Arrow and Python read alike."""
ZONE = r"(Z|[+-]\d{2}:\d{2})$"
MILLISECONDS = (6_000_000_001, 19_000_000_000_000)
"""Numbers from 1970 to 2572 that cannot be meant as seconds, or as a date in digits."""


class _NotPlainError(Exception):
    """A column of a type, or with values, that the other way has to look at."""


class GoodEvents:
    """Takes the good rows of a day out of batches of raw rows."""

    def __init__(self, day: str, nulls: frozenset[str], *, with_roles: bool = False) -> None:
        self.contract = load_contract("events")
        self.start = datetime.combine(date.fromisoformat(day), time(), UTC)
        self.with_roles = with_roles
        self.null_words = pa.array(sorted(nulls | {""}), pa.string())

    def types(self, first: Mapping[str, object]) -> pa.Schema:
        """How a reader of text should read the columns: numbers as numbers, ids and times as the first row has them."""
        others = ("day",) if self.with_roles else ("day", "role")
        types = {field.name: field.type for field in self.contract.arrow_schema if field.name not in others}
        types |= {name: pa.int64() if type(first.get(name)) is int else pa.string() for name in (*IDS, "event_time")}
        return pa.schema(types.items())

    def of(self, batch: pa.RecordBatch) -> tuple[pa.BooleanArray, pa.Table] | None:
        """[N] which rows are good, and of these the columns of ``events`` without the day; None: nothing can be said.

        Args:
            batch: [N] rows with the columns of ``events`` that were found.
        """
        try:
            columns, checks = self._columns(batch)
        except (_NotPlainError, pa.ArrowException):
            return None
        good = pa.array([True] * batch.num_rows)
        for check in checks:
            good = pc.and_(good, pc.fill_null(check, False))
        return good, pa.table(columns).filter(good)

    def _columns(self, batch: pa.RecordBatch) -> tuple[dict[str, pa.Array], list[pa.Array]]:
        size = batch.num_rows
        raw = {name: batch.column(place) for place, name in enumerate(batch.schema.names)}
        columns: dict[str, pa.Array] = {"role": pa.array(["logged"] * size)}
        checks: list[pa.Array] = []
        if self.with_roles and "role" in raw:
            columns["role"] = pc.fill_null(_text(raw["role"]), "logged")
            checks.append(pc.is_in(columns["role"], value_set=self._allowed("role")))
        for name in IDS:
            values = columns[name] = _id(raw[name])
            length = pc.utf8_length(values)
            checks += [
                # Of others than ASCII it is not said alike everywhere what can be printed.
                pc.and_(pc.string_is_ascii(values), pc.utf8_is_printable(values)),
                pc.equal(values, pc.ascii_trim(values, " ")),
                pc.less_equal(length, self.contract.column(name).max_length or 0),
                pc.invert(pc.is_in(values, value_set=self.null_words)),
            ]
        moments = columns["event_time"] = _times(raw["event_time"])
        checks += [
            pc.greater_equal(moments, pa.scalar(self.start, moments.type)),
            pc.less(moments, pa.scalar(self.start + timedelta(days=1), moments.type)),
        ]
        columns["event_type"] = _text(raw["event_type"])
        checks.append(pc.is_in(columns["event_type"], value_set=self._allowed("event_type")))
        if "placement" in raw:
            columns["placement"] = _text(raw["placement"])
            longest = self.contract.column("placement").max_length or 0
            checks.append(_or_null(pc.less_equal(pc.utf8_length(columns["placement"]), longest)))
        if "position" in raw:
            if not pa.types.is_integer(raw["position"].type):
                raise _NotPlainError
            columns["position"] = pc.cast(raw["position"], pa.int32())
            checks.append(_or_null(pc.greater_equal(raw["position"], 0)))
        for name in AMOUNTS:
            if name in raw:
                if not (pa.types.is_integer(raw[name].type) or pa.types.is_floating(raw[name].type)):
                    raise _NotPlainError
                values = columns[name] = pc.cast(raw[name], pa.float64())
                least = pc.greater(values, 0.0) if name == "propensity" else pc.greater_equal(values, 0.0)
                most = pc.less_equal(values, 1.0) if name == "propensity" else pc.less(values, 1e300)
                checks.append(_or_null(pc.and_(least, most)))
        for field in self.contract.arrow_schema:
            if field.name not in columns and field.name != "day":
                columns[field.name] = pa.nulls(size, field.type)
        return columns, checks

    def _allowed(self, name: str) -> pa.Array:
        return pa.array(self.contract.column(name).allowed or (), pa.string())


def _or_null(check: pa.Array) -> pa.Array:
    """Whether it holds, or there is no value."""
    return pc.fill_null(check, True)


def _text(values: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise _NotPlainError
    values.validate(full=True)
    return pc.cast(values, pa.string())


def _id(values: pa.Array) -> pa.Array:
    return pc.cast(values, pa.string()) if pa.types.is_integer(values.type) else _text(values)


def _times(values: pa.Array) -> pa.Array:
    """Moments in UTC, null where it is none that is read alike everywhere."""
    microseconds = pa.timestamp("us", "UTC")
    if pa.types.is_integer(values.type):
        is_plain = pc.and_(pc.greater_equal(values, MILLISECONDS[0]), pc.less(values, MILLISECONDS[1]))
        values = pc.if_else(is_plain, pc.cast(values, pa.int64()), pa.scalar(None, pa.int64()))
        return values.cast(pa.timestamp("ms", "UTC")).cast(microseconds)
    if pa.types.is_string(values.type):
        values = pc.if_else(pc.match_substring_regex(values, ISO), values, pa.scalar(None, pa.string()))
        with_zone = pc.binary_join_element_wise(values, "Z", "")
        return pc.if_else(pc.match_substring_regex(values, ZONE), values, with_zone).cast(microseconds)
    if not pa.types.is_timestamp(values.type):
        raise _NotPlainError
    instants = values.cast(pa.int64()).cast(pa.timestamp(values.type.unit, "UTC"))
    if values.type.unit == "ns":
        instants = pc.floor_temporal(instants, unit="microsecond")
    return instants.cast(microseconds)
