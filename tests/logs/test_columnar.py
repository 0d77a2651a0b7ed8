"""Parquet and JSON Lines in whole columns give what row by row gives."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgrec_core.lake.contracts import load_contract
from sgrec_core.logs.columnar import GoodEvents
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


def both(path: Path, with_roles: bool = False) -> tuple[dict, dict, int]:
    """Line -> accepted values or the reason of the rejection, by either way, and rows that were taken out together."""
    file = RawFile(record="event", name=f"events/{path.name}", path=path)
    options = Options(with_roles=with_roles)
    good = GoodEvents(DAY, options.nulls, with_roles=with_roles)
    readings = Reading(), Reading()
    rows: dict[int, object] = {}
    raw_texts: dict[int, str | None] = {}
    for row in parse_file(file, DAY, options, readings[0]):
        rows[row.line] = row.values if isinstance(row, Accepted) else row.detail
        raw_texts[row.line] = row.raw_text
    columns: dict[int, object] = {}
    texts: dict[int, str] = {}
    together = 0
    for found in parse_file_in_batches(file, DAY, options, readings[1], good):
        if isinstance(found, GoodRows):
            together += len(found.lines)
            columns |= dict(zip(found.lines.to_pylist(), found.table.to_pylist(), strict=True))
            if found.texts is not None:
                texts |= dict(zip(found.lines.to_pylist(), found.texts.to_pylist(), strict=True))
        else:
            columns[found.line] = found.values if isinstance(found, Accepted) else found.detail
    assert readings[0] == readings[1]
    assert texts.items() <= raw_texts.items()
    return rows, columns, together


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(ROW, min_size=1, max_size=12),
    left=st.sets(st.sampled_from(["role", "placement", "bid", "propensity"])),
    with_roles=st.booleans(),
)
def test_columns_and_rows_agree(tmp_path: Path, rows: list[dict], left: set[str], with_roles: bool) -> None:
    table = pa.Table.from_pylist(rows, schema=TYPES).drop_columns(list(left))
    pq.write_table(table, tmp_path / "a.parquet")
    one, other, _ = both(tmp_path / "a.parquet", with_roles)
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
        GoodEvents(DAY, Options().nulls),
    )))  # fmt: skip
    assert isinstance(found, GoodRows)
    assert not isinstance(found, Rejected)
    wanted = [field for field in load_contract("events").arrow_schema if field.name != "day"]
    assert {field.name: field.type for field in found.table.schema} == {field.name: field.type for field in wanted}


TIMES = st.sampled_from(
    [
        *("2026-01-05T10:00:00Z", "2026-01-05 10:00:00", "2026-01-05T10:00:00.5+02:00", "2026-01-05T01:00:00+05:30"),
        *("2026-01-05T10:00:00.1234567Z", "2026-01-05T10:00Z", "2026-01-05", "20260105", "2026-01-05T24:00:00Z"),
        *(
            "2026-13-05T10:00:00Z",
            " 2026-01-05T10:00:00Z",
            "2026-01-05T10:00:00+0200",
            "2026-01-05T10:00:00z",
            "",
            None,
        ),
        *("2026-01-05T23:59:59.999999", "2026-01-04T23:59:59.999999", "2026-01-05T10:00:00-23:59", "1767607200000"),
        *(1_767_607_200_000, 1_767_607_200, 1_767_607_200_000_000, 20260105, 1_767_607_200_000.5, True, "noon"),
    ]
)
JSON_ROW = st.fixed_dictionaries(
    {
        **dict.fromkeys(("event_id", "user_id", "item_id", "request_id"), TEXT | st.sampled_from([7, -1, 2.5, 10**40])),
        "event_type": st.sampled_from(["click", "impression", "hover", "", None, 1]),
        "event_time": TIMES,
    },
    optional={
        "placement": TEXT,
        "role": st.sampled_from([None, "logged", "validation", "other", ""]),
        "position": st.sampled_from([None, 0, 5, -2, 2**31, 1.0, 1.5, "1", False]),
        "price": NUMBER | st.sampled_from([3, "3", 10**400, "", "NULL"]),
        "propensity": NUMBER,
        "extra": st.sampled_from([None, {"user_id": "x"}, [1, "a"], "2026-01-05T10:00:00Z", 5, "\ud800", "}{"]),
    },
)
PLAIN = {**CLICK, "event_time": "2026-01-05T12:00:00Z", "position": 0, "price": 1.5}
ODD_LINES = st.sampled_from(
    [
        *(b"", b" ", b"{}", b"[]", b"{", b"\xff", b"null", b'{"a": 1} {"b": 2}', b'{"a": 1}{"a": 1}'),
        json.dumps(PLAIN).encode() + b" ",
        json.dumps(PLAIN).encode() + json.dumps(PLAIN).encode(),
        json.dumps(PLAIN).encode()[:-1] + b', "user_id": "v"}',
        json.dumps(PLAIN).encode()[:-1] + b', "x": {"k": 1, "k": 2}}',
        json.dumps(PLAIN).encode()[:-1] + b', "x": NaN}',
        json.dumps(PLAIN).encode()[:-1] + b', "x": -Infinity}',
        json.dumps(PLAIN).encode()[:-1] + b', "x": "\xff"}',
        json.dumps(PLAIN).encode()[:-1] + b', "x": "\x01"}',
        json.dumps(PLAIN).encode()[:-1] + b', "x": "' + b"y" * 3000 + b'"}',
        json.dumps(PLAIN).encode()[:-1] + b', "x": ' + b"[" * 3000 + b"]" * 3000 + b"}",
        json.dumps(PLAIN).encode()[:-1] + b', "x": ' + b'{"a":[' * 600 + b"]}" * 600 + b"}",
        json.dumps(PLAIN).encode()[:-1] + b', "x": ' + b"1" * 5000 + b"}",
        json.dumps(PLAIN).encode()[:-1] + b', "x": ' + b"1" * 4000 + b"}",
        json.dumps(PLAIN).encode()[:-1] + b', "x": [' + b"[],{}," * 700 + b"1]}",
        json.dumps(PLAIN).encode()[:-1],
        json.dumps(PLAIN).encode().replace(b"1.5", b"01.5"),
        json.dumps(PLAIN).encode() + b"\r",
    ]
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(JSON_ROW, max_size=6),
    plain=st.integers(0, 3),
    odd=st.lists(ODD_LINES, max_size=2),
    ids=st.sampled_from(["e", 7]),
    order=st.randoms(use_true_random=False),
    with_roles=st.booleans(),
)
def test_lines_at_once_and_one_by_one_agree(  # type: ignore[no-untyped-def]
    tmp_path, rows, plain, odd, ids, order, with_roles
) -> None:
    lines = [json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") for row in rows]
    lines += [json.dumps({**PLAIN, "event_id": ids}).encode()] * plain + odd
    order.shuffle(lines)
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    one, other, _ = both(tmp_path / "a.jsonl", with_roles)
    assert one == other


@pytest.mark.parametrize("value", ["[" * 1500 + "]" * 1500, '{"a":[' * 800 + "]}" * 800, "1" * 5000, "-" + "7" * 4301])
@pytest.mark.parametrize("beside", [[], ["oops"]])
def test_what_python_cannot_read_costs_its_row_whatever_stands_beside_it(
    tmp_path: Path, value: str, beside: list[str]
) -> None:
    rows = [json.dumps({**PLAIN, "event_id": f"e{n}"}) for n in range(4)]
    rows[2] = rows[2][:-1] + f', "x": {value}}}'
    (tmp_path / "a.jsonl").write_text("\n".join([*rows, *beside]))
    one, other, taken = both(tmp_path / "a.jsonl")
    assert one == other
    assert str(one[3]).startswith("not one JSON object")
    assert taken == (0 if beside else 3)


@pytest.mark.parametrize("role", ["buyer", "test", "validation", 5, None])
@pytest.mark.parametrize("together", [True, False])
def test_a_column_of_the_shop_that_is_called_role_is_not_read(tmp_path: Path, role: object, together: bool) -> None:
    rows = [{**PLAIN, "event_id": f"e{n}", "role": role} for n in range(3)]
    (tmp_path / "a.jsonl").write_text("\n".join([*map(json.dumps, rows), *([] if together else ["oops"])]))
    one, other, taken = both(tmp_path / "a.jsonl")
    assert one == other
    assert [one[line]["role"] for line in (1, 2, 3)] == ["logged"] * 3
    assert taken == 3 * together


def test_the_role_counts_where_an_adaptor_has_written_it(tmp_path: Path) -> None:
    rows = [{**PLAIN, "event_id": f"e{n}", "role": role} for n, role in enumerate(["logged", "test", "holdout"])]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    one, other, taken = both(tmp_path / "a.jsonl", with_roles=True)
    assert one == other
    assert ([one[line]["role"] for line in (1, 2)], taken) == (["logged", "test"], 2)
    assert "logged, validation, test" in one[3]


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"role": "buyer"},
        {"event_time": "2026-01-05 12:00:00.25"},
        {"event_time": "2026-01-05T12:00:00+01:00"},
        {"event_time": 1_767_607_200_000},
        {"user_id": 7, "item_id": 8},
        {"price": None, "placement": "home"},
        {"app": {"version": [1, 2]}},
    ],
)
def test_ordinary_lines_are_taken_out_together(tmp_path: Path, other: dict) -> None:
    lines = [json.dumps({**PLAIN, **other, "event_id": f"e{n}"}) for n in range(20_000)]
    lines[7] = json.dumps({**PLAIN, **other, "user_id": None})
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    one, others, together = both(tmp_path / "a.jsonl")
    assert (one == others, together) == (True, 19_999)
