"""Events of Parquet whole columns at a time: rows that are plainly good, as `sgrec_core.logs.parsing` would make them.

Anything else than the plainest is left to the row by row way, which knows the words for what is wrong.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core.lake.contracts import load_contract

IDS = ("event_id", "user_id", "item_id", "request_id")
Good = tuple[pa.BooleanArray, pa.Table]
"""[N] which rows of a batch are good, and of these the columns of ``events`` without the day."""


class _NotPlainError(Exception):
    """A column of a type, or with values, that the other way has to look at."""


def good_events(day: str, nulls: frozenset[str]) -> Callable[[pa.RecordBatch], Good | None]:
    """A function of a batch of raw rows; None where the batch has to be read row by row."""
    contract = load_contract("events")
    start = datetime.combine(date.fromisoformat(day), time(), UTC)
    words = pa.array(sorted(nulls | {""}), pa.string())

    def of(batch: pa.RecordBatch) -> Good | None:
        try:
            columns, checks = _columns(batch)
        except (_NotPlainError, pa.ArrowException):
            return None
        good = pa.array([True] * batch.num_rows)
        for check in checks:
            good = pc.and_(good, pc.fill_null(check, False))
        return good, pa.table(columns).filter(good)

    def _columns(batch: pa.RecordBatch) -> tuple[dict[str, pa.Array], list[pa.Array]]:
        size = batch.num_rows
        raw = {name: batch.column(place) for place, name in enumerate(batch.schema.names)}
        columns: dict[str, pa.Array] = {"role": pa.array(["logged"] * size)}
        checks: list[pa.Array] = []

        def allowed(name: str) -> pa.Array:
            return pa.array(contract.column(name).allowed or (), pa.string())

        if "role" in raw:
            columns["role"] = pc.fill_null(_text(raw["role"]), "logged")
            checks.append(pc.is_in(columns["role"], value_set=allowed("role")))
        for name in IDS:
            values = columns[name] = _text(raw[name])
            length = pc.utf8_length(values)
            checks += [
                # Of others than ASCII it is not said alike everywhere what can be printed.
                pc.and_(pc.string_is_ascii(values), pc.utf8_is_printable(values)),
                pc.equal(values, pc.ascii_trim(values, " ")),
                pc.less_equal(length, contract.column(name).max_length or 0),
                pc.invert(pc.is_in(values, value_set=words)),
            ]
        moments = columns["event_time"] = _times(raw["event_time"])
        checks += [
            pc.greater_equal(moments, pa.scalar(start, moments.type)),
            pc.less(moments, pa.scalar(start + timedelta(days=1), moments.type)),
        ]
        columns["event_type"] = _text(raw["event_type"])
        checks.append(pc.is_in(columns["event_type"], value_set=allowed("event_type")))
        if "placement" in raw:
            columns["placement"] = _text(raw["placement"])
            longest = contract.column("placement").max_length or 0
            checks.append(_or_null(pc.less_equal(pc.utf8_length(columns["placement"]), longest)))
        if "position" in raw:
            if not pa.types.is_integer(raw["position"].type):
                raise _NotPlainError
            columns["position"] = pc.cast(raw["position"], pa.int32())
            checks.append(_or_null(pc.greater_equal(raw["position"], 0)))
        for name in ("price", "bid", "propensity"):
            if name in raw:
                if not (pa.types.is_integer(raw[name].type) or pa.types.is_floating(raw[name].type)):
                    raise _NotPlainError
                values = columns[name] = pc.cast(raw[name], pa.float64())
                least = pc.greater(values, 0.0) if name == "propensity" else pc.greater_equal(values, 0.0)
                most = pc.less_equal(values, 1.0) if name == "propensity" else pc.less(values, 1e300)
                checks.append(_or_null(pc.and_(least, most)))
        for field in contract.arrow_schema:
            if field.name not in columns and field.name != "day":
                columns[field.name] = pa.nulls(size, field.type)
        return columns, checks

    return of


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


def _times(values: pa.Array) -> pa.Array:
    if not pa.types.is_timestamp(values.type):
        raise _NotPlainError
    instants = values.cast(pa.int64()).cast(pa.timestamp(values.type.unit, "UTC"))
    if values.type.unit == "ns":
        instants = pc.floor_temporal(instants, unit="microsecond")
    return instants.cast(pa.timestamp("us", "UTC"))
