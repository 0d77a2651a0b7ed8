"""Parquet in whole columns gives what row by row gives."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgrec_core.lake.contracts import load_contract
from sgrec_core.logs.columnar import good_events
from sgrec_core.logs.landing import RawFile
from sgrec_core.logs.parsing import Accepted, Options, Rejected, parse_file, parse_file_in_batches
from sgrec_core.logs.rows import GoodRows, Reading

DAY = "2026-01-05"
NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
TEXT = st.sampled_from(["u1", "i1", "", "NULL", "a" * 257, "caf\u00e9", "tab\tbed", "x y", None]) | st.text(max_size=4)
NUMBER = st.sampled_from([None, 0.0, 1.0, 0.5, -1.0, float("nan"), float("inf"), 1e301])
ROW = st.fixed_dictionaries(
    {
        **dict.fromkeys(("event_id", "user_id", "item_id", "request_id", "placement"), TEXT),
        "event_type": st.sampled_from(["click", "impression", "hover", "", None]),
        "event_time": st.none() | st.integers(-90_000, 90_000).map(lambda seconds: NOON + timedelta(seconds=seconds)),
        "role": st.sampled_from([None, "logged", "validation", "other"]),
        "position": st.none() | st.integers(-2, 5),
        "price": NUMBER,
        "bid": NUMBER,
        "propensity": NUMBER,
    }
)
TEXTS = ("event_id", "user_id", "item_id", "request_id", "placement", "event_type", "role")
TYPES = pa.schema(
    [
        ("position", pa.int64()),
        ("event_time", pa.timestamp("us", "UTC")),
        *((name, pa.float64()) for name in ("price", "bid", "propensity")),
        *((name, pa.string()) for name in TEXTS),
    ]
)
CLICK = {"event_id": "e", "user_id": "u", "item_id": "i", "request_id": "r", "event_type": "click", "event_time": NOON}


def both(path: Path) -> tuple[dict, dict, int]:
    """Line -> accepted values or the reason of the rejection, by either way, and rows that were taken out together."""
    file = RawFile(record="event", name="events/a.parquet", path=path)
    readings = Reading(), Reading()
    rows: dict[int, object] = {}
    for row in parse_file(file, DAY, Options(), readings[0]):
        rows[row.line] = row.values if isinstance(row, Accepted) else row.detail
    columns: dict[int, object] = {}
    together = 0
    for found in parse_file_in_batches(file, DAY, Options(), readings[1], good_events(DAY, Options().nulls)):
        if isinstance(found, GoodRows):
            together += len(found.lines)
            columns |= dict(zip(found.lines.to_pylist(), found.table.to_pylist(), strict=True))
        else:
            columns[found.line] = found.values if isinstance(found, Accepted) else found.detail
    assert readings[0] == readings[1]
    return rows, columns, together


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(ROW, min_size=1, max_size=12),
    left=st.sets(st.sampled_from(["role", "placement", "bid", "propensity"])),
)
def test_columns_and_rows_agree(tmp_path: Path, rows: list[dict], left: set[str]) -> None:
    table = pa.Table.from_pylist(rows, schema=TYPES).drop_columns(list(left))
    pq.write_table(table, tmp_path / "a.parquet")
    one, other, _ = both(tmp_path / "a.parquet")
    assert one == other


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("event_time", pa.array([NOON] * 3, pa.timestamp("ns", "Mars/Olympus"))),
        ("event_time", pa.array([NOON] * 3, pa.timestamp("s"))),
        ("event_time", pa.array(["2026-01-05T12:00:00Z"] * 3)),
        ("user_id", pa.array([1, 2, 3])),
        ("user_id", pa.array([b"a", b"b", b"\xff"], pa.binary())),
        ("user_id", pa.array(["a", "b", "b"]).dictionary_encode()),
        ("position", pa.array([1.0, 2.0, 2.5])),
        ("position", pa.array([2**40, 1, None])),
        ("price", pa.array([1, 2, None])),
        ("price", pa.array(["1", "2", None])),
    ],
)
def test_columns_of_other_types_agree_too(tmp_path: Path, column: str, values: pa.Array) -> None:
    table = pa.Table.from_pylist([{**CLICK, "position": 0, "price": 1.0}] * 3)
    pq.write_table(table.set_column(table.column_names.index(column), column, values), tmp_path / "a.parquet")
    one, other, _ = both(tmp_path / "a.parquet")
    assert one == other


def test_plain_rows_are_taken_out_together_and_fit_the_contract(tmp_path: Path) -> None:
    row = {
        "event_id": "e",
        "user_id": "u",
        "item_id": "i",
        "request_id": "r",
        "event_type": "click",
        "event_time": NOON,
    }
    rows = [{**row, "event_id": f"e{n}"} for n in range(20_000)]
    rows[7]["user_id"] = None
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    one, other, together = both(tmp_path / "a.parquet")
    assert (one == other, together) == (True, 19_999)
    found = next(iter(parse_file_in_batches(
        RawFile(record="event", name="events/a.parquet", path=tmp_path / "a.parquet"), DAY, Options(), Reading(),
        good_events(DAY, Options().nulls),
    )))  # fmt: skip
    assert isinstance(found, GoodRows)
    assert not isinstance(found, Rejected)
    wanted = [field for field in load_contract("events").arrow_schema if field.name != "day"]
    assert {field.name: field.type for field in found.table.schema} == {field.name: field.type for field in wanted}
