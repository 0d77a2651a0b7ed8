"""Mappings: rows of other systems become sgrec's, and what makes no sense is told with its place."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from sgrec_core.errors import InputError
from sgrec_core.logs.landing import RawFile, Record
from sgrec_core.logs.mapping import LogMapping
from sgrec_core.logs.parsing import Accepted, Options, Rejected, parse_file
from sgrec_core.logs.rows import Reading

DAY = "2026-01-05"
PLAIN = {
    "event_id": "id", "event_time": {"from": "at", "unit": "s"}, "user_id": "who", "item_id": "what",
    "event_type": {"from": "did", "values": {"view": "impression", "tap": "click"}}, "request_id": "visit",
}  # fmt: skip
ROW = "id,at,who,what,did,visit,cents\ne1,1767607200,u1,i1,tap,r1,250\n"


def mapping(tmp_path: Path, **parts: Any) -> LogMapping:
    path = tmp_path / "map.yaml"
    path.write_text(yaml.safe_dump(parts, sort_keys=False))
    return LogMapping.read(path)


def read(
    tmp_path: Path, known: LogMapping, content: str, name: str = "events/a.csv", record: Record = "event"
) -> tuple[list[dict[str, Any]], list[Rejected], Reading]:
    path = tmp_path / Path(name).name
    path.write_text(content)
    reading = Reading()
    rows = list(parse_file(RawFile(record=record, name=name, path=path), DAY, Options(mapping=known), reading))
    return (
        [row.values for row in rows if isinstance(row, Accepted)],
        [r for r in rows if isinstance(r, Rejected)],
        reading,
    )


def test_columns_are_renamed_converted_and_computed(tmp_path: Path) -> None:
    columns = {
        **PLAIN,
        "price": {"expr": "int(cents) / 100"},
        "placement": {"const": "home"},
        "event_id": {"hash": ["who", "at"]},
    }
    (event,), rejected, _ = read(tmp_path, mapping(tmp_path, events={"columns": columns}), ROW)
    assert rejected == []
    assert event["event_time"] == datetime(2026, 1, 5, 10, tzinfo=UTC)
    told = [event[name] for name in ("user_id", "item_id", "event_type", "price", "placement")]
    assert told == ["u1", "i1", "click", 2.5, "home"]
    assert len(event["event_id"]) == 24


@pytest.mark.parametrize(
    ("time", "told"),
    [
        ({"from": "at", "unit": "ms"}, "1767607200000"),
        ({"from": "at", "unit": "us"}, "1767607200000000"),
        ({"from": "at", "format": "%d.%m.%Y %H:%M", "zone": "Europe/Berlin"}, "05.01.2026 11:00"),
        ({"from": "at", "zone": "America/New_York"}, "2026-01-05 05:00:00"),
        ({"from": "at", "zone": "America/New_York"}, "2026-01-05T10:00:00Z"),
    ],
)
def test_times_of_any_unit_form_and_zone_are_one_instant(tmp_path: Path, time: dict, told: str) -> None:
    known = mapping(tmp_path, events={"columns": {**PLAIN, "event_time": time}})
    (event,), _, _ = read(tmp_path, known, ROW.replace("1767607200", told))
    assert event["event_time"] == datetime(2026, 1, 5, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("raw", "reason", "words"),
    [
        (
            ("1767607200", "noon"),
            "invalid_value",
            "column at: 'noon' is no time; the mapping says a number of s",
        ),
        (("tap", "hover"), "unknown_event_type", "column did: 'hover'; the mapping knows view, tap"),
        (("250", "much"), "invalid_value", "price: int(cents) / 100: invalid literal"),
        ((",u1,", ",NULL,"), "anonymous", "column user_id: 'NULL' stands for nothing"),
    ],
)
def test_what_a_mapping_cannot_read_costs_its_row(tmp_path: Path, raw: tuple, reason: str, words: str) -> None:
    known = mapping(tmp_path, events={"columns": {**PLAIN, "price": {"expr": "int(cents) / 100"}}})
    events, (rejected,), _ = read(tmp_path, known, ROW + ROW.splitlines()[1].replace("e1", "e2").replace(*raw))
    assert len(events) == 1
    assert (rejected.line, rejected.reason) == (3, reason)
    assert words in rejected.detail


def test_lists_explode_and_flags_make_events_each_part_with_its_own_fate(tmp_path: Path) -> None:
    columns = {**PLAIN, "event_id": {"hash": ["id", "news", "event_type"]}, "item_id": "news", "position": "place"}
    del columns["event_type"]
    known = mapping(
        tmp_path,
        events={
            "columns": columns,
            "explode": {"column": "what", "pattern": "(?P<news>.*)-(?P<clicked>[01])"},
            "rows": [
                {"columns": {"event_type": {"const": "impression"}}},
                {"when": "clicked == '1'", "columns": {"event_type": {"const": "click"}}},
            ],
        },
    )
    lines = ["id,at,who,what,visit", "1,1767607200,u1,N1-0 N2-1 -1,r1", "2,1767607200,u1,,r2", "3,1767607200,u1,N1,r3"]
    events, rejected, reading = read(tmp_path, known, "\n".join(lines))
    assert [(event["item_id"], event["event_type"], event["position"]) for event in events] == [
        ("N1", "impression", 0), ("N2", "impression", 1), ("N2", "click", 1),
    ]  # fmt: skip
    assert [(row.line, row.part, row.reason) for row in rejected] == [
        (2, 3, "missing_field"), (2, 4, "missing_field"), (4, 0, "invalid_value"),
    ]  # fmt: skip
    assert (reading.rows, reading.rows_empty, reading.ended) == (3, 1, "complete")
    assert len({event["event_id"] for event in events}) == 3


def test_rows_that_a_mapping_leaves_out_are_counted(tmp_path: Path) -> None:
    known = mapping(tmp_path, events={"columns": PLAIN, "where": "did in ('tap',)"})
    events, rejected, reading = read(tmp_path, known, ROW + "e2,1767607200,u1,i1,view,r1,1\n")
    assert (len(events), rejected, reading.rows, reading.rows_empty) == (1, [], 2, 1)


def test_json_with_nested_lists_and_a_column_that_is_raw_and_sgrecs(tmp_path: Path) -> None:
    columns = {
        "event_id": {"hash": ["visit", "sku"]}, "event_time": "at", "user_id": "user_id", "item_id": "sku",
        "event_type": {"const": "click"}, "request_id": "visit", "price": {"expr": "price / 100"},
    }  # fmt: skip
    known = mapping(tmp_path, events={"columns": columns, "explode": {"column": "shown", "separator": None}})
    shown = '[{"sku": "a"}, {"sku": "b"}]'
    row = f'{{"at": "2026-01-05T10:00:00Z", "user_id": 7, "visit": "v", "price": 250, "shown": {shown}}}'
    events, rejected, _ = read(tmp_path, known, row, "events/a.jsonl")
    assert rejected == []
    told = [(event["user_id"], event["item_id"], event["price"]) for event in events]
    assert told == [("7", "a", 2.5), ("7", "b", 2.5)]


def test_files_without_a_header_and_files_that_the_mapping_does_not_name(tmp_path: Path) -> None:
    files = {"files": "clicks*", "header": ROW.splitlines()[0].split(","), "columns": PLAIN}
    known = mapping(tmp_path, events=files)
    events, _, reading = read(tmp_path, known, ROW.splitlines()[1], "events/clicks.dat")
    assert (len(events), reading.rows) == (1, 1)
    events, rejected, reading = read(tmp_path, known, ROW, "events/other.csv")
    assert (events, rejected, reading.ended, reading.rows) == ([], [], "left_out", 0)
    assert reading.detail == "the mapping names clicks*; this file is none of them"


def test_a_header_without_the_mappings_columns_is_one_sentence(tmp_path: Path) -> None:
    known = mapping(tmp_path, events={"columns": {**PLAIN, "price": {"expr": "int(cents) / 100"}}})
    _, (rejected,), reading = read(tmp_path, known, ROW.replace("cents", "euros"))
    assert "missing is cents" in rejected.detail
    assert (reading.ended, reading.rows_unread) == ("unreadable", 1)


def test_events_without_id_get_one_from_their_content(tmp_path: Path) -> None:
    columns = {name: column for name, column in PLAIN.items() if name != "event_id"}
    known = mapping(tmp_path, events={"columns": columns})
    events, _, _ = read(tmp_path, known, ROW + ROW.splitlines()[1] + "\n" + ROW.splitlines()[1].replace("u1", "u2"))
    ids = [event["event_id"] for event in events]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"event": {}}, "event: Extra inputs are not permitted"),
        ({"events": {"columns": {}}}, "nothing says where event_time, user_id, item_id, event_type"),
        ({"events": {"columns": {**PLAIN, "colour": "c"}}}, "colour is no column of it; valid are event_id"),
        ({"events": {"columns": {**PLAIN, "price": {"from": "a", "const": 1}}}}, "exactly one of from, const"),
        ({"events": {"columns": {**PLAIN, "price": {"expr": "1 +"}}}}, "'1 +' is no expression"),
        ({"events": {"columns": {**PLAIN, "price": {"expr": "open('x')"}}}}, "no function open; valid are int, float"),
        ({"events": {"columns": {**PLAIN, "event_time": {"from": "a", "zone": "Mars"}}}}, "'Mars' is no time zone"),
        ({"events": {"columns": {**PLAIN, "event_time": {"from": "a", "unit": "minutes"}}}}, "'ms'"),
        ({"events": {"columns": PLAIN, "explode": {"column": "x", "pattern": "(a"}}}, "is no regular expression"),
        ({"catalogue": {"columns": {"title": "t"}}}, "nothing says where item_id comes from"),
        ({"catalogue": {"columns": {"item_id": "t"}}, "catalogue_from_events": True}, "exclude each other"),
    ],
)  # fmt: skip
def test_a_mapping_that_makes_no_sense_is_refused_with_its_place(tmp_path: Path, parts: dict, words: str) -> None:
    with pytest.raises(InputError, match=r"^mapping .*map\.yaml: ") as error:
        mapping(tmp_path, **parts)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "attack",
    ["().__class__", "who.__class__.__mro__", "str.__subclasses__()", "__import__('os')", "'a' * 10 ** 9",
     "9 ** 9 ** 9",
     "[x for x in 'a' * 99999 for y in 'a' * 99999]", "lambda: 1", "eval('1')"],
)  # fmt: skip
def test_an_expression_reaches_nothing_of_ours(tmp_path: Path, attack: str) -> None:
    try:
        known = mapping(tmp_path, events={"columns": {**PLAIN, "placement": {"expr": attack}}})
    except InputError:
        return
    events, (rejected,), _ = read(tmp_path, known, ROW)
    assert (events, rejected.reason in ("invalid_value", "missing_field")) == ([], True)


@pytest.mark.parametrize(
    ("time", "told"),
    [
        ({"from": "at", "unit": "s"}, '{"$date": 1767607200}'),
        ({"from": "at", "unit": "s"}, "[1767607200]"),
        ({"from": "at", "zone": "Europe/Berlin"}, '"0001-01-01 00:00:00"'),
        ({"from": "at", "zone": "America/New_York"}, '"9999-12-31 23:59:59"'),
    ],
)
def test_a_time_of_any_kind_costs_its_row_and_no_other(tmp_path: Path, time: dict, told: str) -> None:
    good = '{"at": %s, "who": "u1", "what": "i1", "did": "tap", "visit": "r1", "id": "e1"}\n'
    known = mapping(tmp_path, events={"columns": {**PLAIN, "event_time": time}})
    fine = "1767607200" if "unit" in time else '"2026-01-05 11:00:00"'
    events, (rejected,), _ = read(tmp_path, known, good % told + good % fine, "events/a.jsonl")
    assert len(events) == 1
    assert (rejected.line, rejected.reason) == (1, "invalid_value")
    assert "is no time" in rejected.detail


@pytest.mark.parametrize("first", ["1::Toy Story::Animation|Comedy|Fantasy", "1::A, B, C and D::Drama"])
def test_named_columns_say_which_delimiter_parts_the_first_line(tmp_path: Path, first: str) -> None:
    columns = {"item_id": "id", "title": "name", "category": "genres"}
    known = mapping(tmp_path, catalogue={"header": ["id", "name", "genres"], "columns": columns})
    text = f"{first}\n2::Jumanji::A|B|C\n"
    items, rejected, _ = read(tmp_path, known, text, "catalogue/movies.dat", "item")
    assert rejected == []
    assert [item["item_id"] for item in items] == ["1", "2"]


def test_a_comprehension_reads_nested_parameters_and_names_no_column(tmp_path: Path) -> None:
    expr = "[one['value']['string'] for one in params if one['key'] == 'item'][0]"
    known = mapping(tmp_path, events={"columns": {**PLAIN, "item_id": {"expr": expr}}})
    text = (
        '{"id": "e1", "at": 1767607200, "who": "u1", "did": "tap", "visit": "r1",'
        ' "params": [{"key": "page", "value": {"string": "p"}}, {"key": "item", "value": {"string": "i1"}}]}\n'
    )
    (event,), rejected, reading = read(tmp_path, known, text, "events/a.jsonl")
    assert (rejected, reading.ended, event["item_id"]) == ([], "complete", "i1")


@pytest.mark.parametrize(
    ("time", "told", "words"),
    [
        ({"from": "at", "unit": "ms"}, "1767607200", "is 1970-01-21 as ms since 1970: is it of another unit?"),
        ("at", "20260105100000", "looks like the time 2026-01-05 10:00:00 in digits"),
        ({"from": "at", "format": "%Y-%m-%d %H:%M %Z", "zone": "Europe/Berlin"}, "2026-01-05 10:00 EST", "is no time"),
    ],
)
def test_times_of_another_unit_or_zone_are_not_taken_for_what_they_are_not(
    tmp_path: Path, time: dict | str, told: str, words: str
) -> None:
    known = mapping(tmp_path, events={"columns": {**PLAIN, "event_time": time}})
    events, (rejected,), _ = read(tmp_path, known, ROW.replace("1767607200", told))
    assert events == []
    assert rejected.reason == "invalid_value"
    assert words in rejected.detail


def test_a_zone_that_the_text_names_counts_more_than_that_of_the_mapping(tmp_path: Path) -> None:
    time = {"from": "at", "format": "%Y-%m-%d %H:%M %Z", "zone": "Europe/Berlin"}
    known = mapping(tmp_path, events={"columns": {**PLAIN, "event_time": time}})
    (event,), _, _ = read(tmp_path, known, ROW.replace("1767607200", "2026-01-05 10:00 UTC"))
    assert event["event_time"] == datetime(2026, 1, 5, 10, tzinfo=UTC)


def test_values_of_numbers_and_truth_need_no_quotes(tmp_path: Path) -> None:
    text = '{"id": "e%d", "at": 1767607200, "who": "u1", "what": "i1", "visit": "r1", "did": %s}\n'
    path = tmp_path / "values.yaml"
    columns = yaml.safe_dump({**PLAIN, "event_type": None}).replace("event_type: null\n", "")
    lines = ["event_type: {from: did, values: {2: click, true: conversion, false: dislike}}", *columns.splitlines()]
    path.write_text("events:\n  columns:\n" + "".join(f"    {line}\n" for line in lines))
    content = "".join(text % pair for pair in enumerate(("2", "true", "false")))
    events, rejected, _ = read(tmp_path, LogMapping.read(path), content, "events/a.jsonl")
    assert rejected == []
    assert [event["event_type"] for event in events] == ["click", "conversion", "dislike"]


def test_a_hash_of_nothing_is_no_id(tmp_path: Path) -> None:
    text = '{"id": "e1", "at": 1767607200, "who": "u1", "what": "i1", "did": "tap", "visit": "r1"%s}\n'
    known = mapping(tmp_path, events={"columns": {**PLAIN, "event_id": {"hash": ["row", "cart"]}}})
    content = text % ', "row": "a"' + text % ', "row": "", "cart": null' + text % ', "cart": "b"'
    events, (rejected,), _ = read(tmp_path, known, content, "events/a.jsonl")
    assert len({event["event_id"] for event in events}) == 2
    assert (rejected.line, rejected.reason) == (2, "missing_field")


@pytest.mark.parametrize("user", ["who", {"expr": "lower(who)"}])
def test_bytes_that_are_no_text_cost_their_row(tmp_path: Path, user: str | dict) -> None:
    known = mapping(tmp_path, events={"columns": {**PLAIN, "user_id": user}})
    same = {"at": [1767607200] * 2, "what": ["i1"] * 2, "did": ["tap"] * 2, "visit": ["r1"] * 2}
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["e1", "e2"], "who": [b"\xff\xfe", b"u2"], **same}), path)
    rows = list(
        parse_file(RawFile(record="event", name="events/a.parquet", path=path), DAY, Options(mapping=known), Reading())
    )
    assert [getattr(row, "reason", None) for row in rows] == ["invalid_encoding", None]
