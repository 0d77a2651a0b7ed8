"""Files as producers leave them: damaged, half-written, of other tools. Every row and every file is accounted for."""

import bz2
import codecs
import gzip
import json
import lzma
import os
import time
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgrec_core.errors import NotReadyError
from sgrec_core.logs import landing
from sgrec_core.logs.columnar import GoodEvents
from sgrec_core.logs.landing import RawFile
from sgrec_core.logs.parsing import Accepted, Options, Rejected, parse_file, parse_file_in_batches
from sgrec_core.logs.rows import Reading

DAY = "2026-01-05"
LATIN = b"gr\xf6\xdfe,event_id,event_time\n" + b"1,e1,2026-01-05T10:00:00Z\n" * 10
COMPRESS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd.compress}
NAMES = ("event_id", "event_time", "user_id", "item_id", "event_type", "request_id")


def events(count: int, **changes: object) -> list[dict]:
    good = {"event_time": "2026-01-05T10:00:00Z", "user_id": "u1", "item_id": "i1", "event_type": "click"}
    return [{"event_id": f"e{n}", **good, "request_id": f"r{n}", **changes} for n in range(count)]


def jsonl(rows: list[dict]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def delimited(rows: list[dict], by: str = ",") -> bytes:
    return "".join(by.join(map(str, line)) + "\n" for line in [list(rows[0]), *(row.values() for row in rows)]).encode()


def profiles(path: Path) -> dict[str, object]:
    """What becomes of a file of profiles, by user; none is rejected."""
    rows = list(parse_file(RawFile(record="user", name=f"profiles/{path.name}", path=path), DAY, Options(), Reading()))
    assert not [row for row in rows if isinstance(row, Rejected)]
    return {row.values["user_id"]: json.loads(row.values["profile"]) for row in rows if isinstance(row, Accepted)}


def read(path: Path, content: bytes | None = None, **options: object) -> tuple[list[Accepted], list[Rejected], Reading]:
    if content is not None:
        path.write_bytes(content)
    reading = Reading()
    file = RawFile(record="event", name=f"events/{path.name}", path=path)
    rows = list(parse_file(file, DAY, Options(**options), reading))  # type: ignore[arg-type]
    return [r for r in rows if isinstance(r, Accepted)], [r for r in rows if isinstance(r, Rejected)], reading


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("damage", ["magic", "body", "cut"])
def test_a_damaged_later_stream_costs_nothing_before_it(tmp_path: Path, kind: str, damage: str) -> None:
    first, second = COMPRESS[kind](jsonl(events(10))), bytearray(COMPRESS[kind](jsonl(events(20)[10:])))
    if damage == "magic":
        second[:4] = b"XXXX"
    elif damage == "body":
        second[12:20] = b"\xff" * 8
    else:
        del second[-6:]
    accepted, rejected, reading = read(tmp_path / f"a.jsonl.{kind}", first + bytes(second))
    assert [row.values["event_id"] for row in accepted][:10] == [f"e{n}" for n in range(10)]
    assert [row.reason for row in rejected if row.line == 0] == ["truncated_file"]
    assert reading.ended == "broken_off"
    if damage == "magic":
        assert (len(accepted), reading.bytes_consumed) == (10, len(first))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["gz", "xz"]), at=st.floats(0, 1), streams=st.integers(1, 3))
def test_a_file_that_is_cut_anywhere_keeps_every_whole_row(tmp_path: Path, kind: str, at: float, streams: int) -> None:
    noise = jsonl([{**row, "event_id": os.urandom(20).hex()} for row in events(200)])
    parts = [COMPRESS[kind](noise) for _ in range(streams)]
    content = b"".join(parts)[: int(at * sum(map(len, parts)))]
    _, rejected, reading = read(tmp_path / f"a.jsonl.{kind}", content)
    whole = next((n for n in range(streams + 1) if sum(map(len, parts[: n + 1])) > len(content)), streams)
    assert reading.rows >= 200 * whole
    assert (reading.ended == "complete") == (len(content) == sum(map(len, parts[:whole])))
    assert all(row.line == 0 for row in rejected[-1:])


def test_zeros_behind_a_stream_are_padding_only_where_the_format_says_so(tmp_path: Path) -> None:
    found = {kind: read(tmp_path / f"a.jsonl.{kind}", compress(jsonl(events(3))) + b"\0" * 512)[2].ended
             for kind, compress in COMPRESS.items()}  # fmt: skip
    assert found == {"gz": "complete", "xz": "complete", "bz2": "broken_off", "zst": "broken_off"}


@pytest.mark.parametrize(
    ("name", "content", "format"),
    [
        ("part-0.json", jsonl(events(10)), "jsonl"),
        ("array.json", json.dumps(events(10), indent=2).encode(), "json"),
        ("array.json.gz", gzip.compress(json.dumps(events(10)).encode()), "json"),
        ("a.tsv", delimited(events(10), "\t"), "csv"),
        ("a.csv", delimited(events(10), ";"), "csv"),
        ("a.dat", delimited(events(10), "::"), "csv"),
        ("a.txt", delimited(events(10), "|"), "csv"),
        ("a.txt", jsonl(events(10)), "jsonl"),
        ("000000_0", delimited(events(10), "\x01"), "csv"),
        ("part-00000", gzip.compress(jsonl(events(10))), "jsonl"),
        ("zipped.jsonl", zstd.compress(jsonl(events(10))), "jsonl"),
        ("array.jsonl", b"\n " + json.dumps(events(10)).encode() + b"\n", "json"),
        ("array.ndjson.gz", gzip.compress(json.dumps(events(10), indent=0).encode()), "json"),
        ("returns.jsonl", jsonl(events(10)).replace(b"\n", b"\r"), "jsonl"),
        ("returns.jsonl.gz", gzip.compress(jsonl(events(10)).replace(b"\n", b"\r")), "jsonl"),
        ("returns.csv", delimited(events(10)).replace(b"\n", b"\r"), "csv"),
    ],
)
def test_what_a_file_holds_is_known_by_its_content(tmp_path: Path, name: str, content: bytes, format: str) -> None:
    accepted, rejected, reading = read(tmp_path / name, content)
    assert (len(accepted), rejected, reading.format, reading.ended) == (10, [], format, "complete")
    assert reading.bytes_consumed == reading.bytes == len(content)


@pytest.mark.parametrize(
    ("content", "rows", "words"),
    [
        (json.dumps(events(10))[:-1].encode(), 10, "not closed"),
        (json.dumps(events(10)).encode() + b'{"x": 1}', 10, "more follows"),
        (b"[" + jsonl(events(3)).replace(b"\n", b",") + b'{"event_id": ', 3, "line 1: no JSON value that ends"),
        (b'[{"event_id": "e1", "event_id": "e2"}]', 1, "no row has"),
    ],
)
def test_a_damaged_array_keeps_the_rows_before_it(tmp_path: Path, content: bytes, rows: int, words: str) -> None:
    _, rejected, reading = read(tmp_path / "a.json", content)
    assert reading.rows == rows
    if "event_id" not in words and reading.ended != "complete":
        assert words in rejected[-1].detail


GOOD_ROW = json.dumps(events(1)[0]).encode()
ELEMENTS = [
    GOOD_ROW,
    GOOD_ROW[:-1] + b', "price": NaN}',
    GOOD_ROW[:-1] + b', "x": ' + b"[" * 3000 + b"]" * 3000 + b"}",
    GOOD_ROW[:-1] + b', "x": ' + b"1" * 5000 + b"}",
    GOOD_ROW[:-1] + b', "x": "\xff\\" ]},{"}',
    GOOD_ROW[:-1] + b', "user_id": "u2"}',
    GOOD_ROW.replace(b"u1", "caf\u00e9".encode()),
    b"NaN",
    b"oops",
    b"[1, {}]",
    b'"text"',
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    elements=st.lists(st.sampled_from(ELEMENTS), min_size=1, max_size=30),
    between=st.sampled_from([b",", b",\n", b" ,\r\n "]),
    padding=st.integers(0, 70_000),
)
def test_an_element_of_an_array_costs_what_a_line_costs(
    tmp_path: Path, elements: list[bytes], between: bytes, padding: int
) -> None:
    """Wherever the pieces end that a file is read in."""
    array = b"[" + b" " * padding + between.join(elements) + b"]\n"
    found = [read(tmp_path / "a.json", array), read(tmp_path / "a.jsonl", b"{}\n" + b"\n".join(elements))]
    (good, bad, reading), (good_lines, bad_lines, _) = found
    assert [row.line + 1 for row in good] == [row.line for row in good_lines]
    bad_rows = [(row.line + 1, row.reason) for row in bad if row.line]
    assert bad_rows == [(row.line, row.reason) for row in bad_lines if row.line > 1]
    assert reading.rows == len(elements)
    if good:
        assert (reading.ended, reading.bytes_consumed) == ("complete", len(array))


@pytest.mark.parametrize("count", [2, 3000])
@pytest.mark.parametrize("cut", [b", ", b', {"event', b', {"event_id": "caf\xc3', b']\n{"x": 1}'])
def test_what_was_read_of_an_array_ends_where_its_rows_do(tmp_path: Path, count: int, cut: bytes) -> None:
    whole = json.dumps(events(count))[:-1].encode()
    accepted, rejected, reading = read(tmp_path / "a.json", whole + cut)
    assert (len(accepted), len(rejected), reading.ended) == (count, 1, "broken_off")
    assert reading.bytes - reading.bytes_consumed == len(cut.removeprefix(b", ").removeprefix(b"]"))
    _, _, reading = read(tmp_path / "a.json.gz", gzip.compress(whole + cut))
    assert (reading.ended, reading.bytes_consumed) == ("broken_off", 0)


@pytest.mark.parametrize("kind", COMPRESS)
def test_of_a_compressed_file_that_is_cut_no_byte_of_the_cut_stream_counts(tmp_path: Path, kind: str) -> None:
    first, second = (COMPRESS[kind](jsonl(events(count))) for count in (5, 500))
    for before in (b"", first):
        accepted, _, reading = read(tmp_path / f"a.jsonl.{kind}", before + second[: len(second) // 2])
        assert (reading.ended, reading.bytes_consumed) == ("broken_off", len(before))
        assert len(accepted) >= 5 * bool(before)


def test_an_array_is_read_a_piece_at_a_time(tmp_path: Path) -> None:
    rows = [{**row, "placement": "x" * 200} for row in events(2000)]
    accepted, rejected, reading = read(tmp_path / "a.json", json.dumps(rows, indent=1).encode())
    assert (len(accepted), rejected, reading.rows) == (2000, [], 2000)
    assert [row.line for row in accepted[:3]] == [1, 2, 3]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [10, 1000])
def test_any_end_of_lines_gives_the_same_rows(tmp_path: Path, end: bytes, size: int) -> None:
    rows = events(size)
    rows[1]["placement"] = "list\r"  # JSON writes it out
    accepted, rejected, _ = read(tmp_path / "a.jsonl", jsonl(rows).replace(b"\n", end))
    assert [(row.line, row.values["event_id"]) for row in accepted] == [(n + 1, f"e{n}") for n in range(size)]
    assert rejected == []


def test_a_return_within_a_line_is_a_space_where_lines_have_feeds(tmp_path: Path) -> None:
    accepted, rejected, _ = read(tmp_path / "a.jsonl", jsonl(events(2)).replace(b", ", b",\r"))
    assert (len(accepted), rejected) == (2, [])


def test_a_first_line_that_is_an_array_costs_itself_alone(tmp_path: Path) -> None:
    accepted, rejected, reading = read(tmp_path / "a.jsonl", b'[{"event_id": "e"}]\n' + jsonl(events(3)))
    assert (len(accepted), [(row.line, row.reason) for row in rejected]) == (3, [(1, "wrong_type")])
    assert reading.format == "jsonl"


@pytest.mark.parametrize("separators", [(",", ":"), (",\n", ": "), (",\n\n\n", ":")])
def test_no_two_elements_of_an_array_have_one_place(tmp_path: Path, separators: tuple[str, str]) -> None:
    rows = events(5)
    rows[2]["user_id"] = None
    accepted, rejected, _ = read(tmp_path / "a.json", json.dumps(rows, separators=separators).encode())
    assert [row.line for row in accepted] == [1, 2, 4, 5]
    assert [row.line for row in rejected] == [3]


@pytest.mark.parametrize(
    ("name", "content", "reason", "words", "rows"),
    [
        ("twice.csv", delimited(events(10)).replace(b"request_id", b"item_id"), "repeated_field", "item_id", 10),
        ("latin.csv", LATIN, "invalid_encoding", "header", 10),
        ("none.csv", delimited(events(10)).split(b"\n", 1)[1], "missing_field", "is there no header?", 10),
        ("other.csv", b"timestamp,visitorid,itemid\n1,2,3\n4,5,6\n", "missing_field", "timestamp, visitorid", 2),
        ("one.csv", delimited(events(10)).replace(b"user_id", b"uid", 1), "missing_field", "missing is user_id", 10),
        ("le.csv", codecs.BOM_UTF16_LE + delimited(events(10)).decode().encode("utf-16-le"), "invalid_encoding",
         "UTF-16-LE", 10),
        ("be.csv", delimited(events(10)).decode().encode("utf-16-be"), "invalid_encoding", "UTF-16-BE", 10),
        ("le.jsonl", jsonl(events(10)).decode().encode("utf-16-le"), "invalid_encoding", "UTF-16-LE", 10),
    ],
)  # fmt: skip
def test_a_header_that_cannot_count_is_one_sentence_and_a_count(
    tmp_path: Path, name: str, content: bytes, reason: str, words: str, rows: int
) -> None:
    accepted, (rejected,), reading = read(tmp_path / name, content)
    assert (accepted, rejected.reason, rejected.line) == ([], reason, 0)
    assert words in rejected.detail
    assert f"its {rows} rows are not read" in rejected.detail
    assert (reading.ended, reading.rows_unread, reading.rows) == ("unreadable", rows, 0)


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"events": events(3)}, indent=1),
        json.dumps(events(1)[0], indent=2),
        '{"events": [\n' + json.dumps(events(1)[0]) + "]}",
        '{"events": [\n' + json.dumps(events(1)[0]) + "\n]}",
        "\n{\n" + json.dumps(events(1)[0])[1:],
    ],
)
def test_an_object_over_several_lines_is_one_sentence_with_its_mend(tmp_path: Path, content: str) -> None:
    accepted, (rejected,), reading = read(tmp_path / "a.json", content.encode())
    assert (accepted, reading.ended, rejected.line) == ([], "unreadable", 0)
    assert "jq -c '.NAME[]' FILE" in rejected.detail


@pytest.mark.parametrize("opened", ["{", '{"event_id": {', '\n {"x": ['])
@pytest.mark.parametrize("count", [1, 50])
@pytest.mark.parametrize("good", [GoodEvents(DAY, Options().nulls), None])
def test_a_damaged_first_line_costs_itself_where_rows_follow(
    tmp_path: Path, opened: str, count: int, good: GoodEvents | None
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(opened.encode() + b"\n" + jsonl(events(count)))
    reading = Reading()
    file = RawFile(record="event", name="events/a.jsonl", path=path)
    rows = list(parse_file_in_batches(file, DAY, Options(), reading, good))
    rejected = [(row.line, row.reason) for row in rows if isinstance(row, Rejected)]
    assert rejected == [(1 + opened.count("\n"), "invalid_json")]
    assert (reading.rows, reading.ended) == (count + 1, "complete")


def test_tabs_with_quoted_names_have_quoted_values(tmp_path: Path) -> None:
    rows = events(3, user_id="u\t1")
    quoted = "".join("\t".join(f'"{v}"' for v in line) + "\n" for line in [NAMES, *(r.values() for r in rows)])
    accepted, rejected, _ = read(tmp_path / "a.tsv", quoted.replace("u\t1", "u 1").encode())
    assert ([row.values["user_id"] for row in accepted], rejected) == (["u 1"] * 3, [])
    plain = delimited(events(1, user_id='"u1"'), "\t")
    accepted, _, _ = read(tmp_path / "b.tsv", plain)
    assert accepted[0].values["user_id"] == '"u1"'


def test_a_delta_table_among_the_files_is_not_read_file_by_file(tmp_path: Path) -> None:
    folder = landed_day(tmp_path)
    landing.write_lines(folder / "events" / "part-0.jsonl", [jsonl(events(1))])
    (folder / "events" / "_delta_log").mkdir()
    lost = [one for one in landing.landed(tmp_path, DAY).left_out if one.is_lost]
    assert [one.name for one in lost] == ["events/_delta_log"]
    assert "sgrec land" in lost[0].why


def test_a_key_that_is_there_twice_is_not_guessed(tmp_path: Path) -> None:
    line = '{"event_id" : "e1", "item_id": "i1", "x": {"a": "b\\":", "c": 1}, "item_id" :"i2"}'
    _, rejected, _ = read(tmp_path / "a.jsonl", line.encode())
    assert (rejected[0].reason, rejected[0].detail.split(" more")[0]) == ("repeated_field", "the object has item_id")
    nested = json.dumps({**events(1)[0], "x": {"item_id": "other", 'q":': 1}}).encode()
    accepted, rejected, _ = read(tmp_path / "b.jsonl", nested)
    assert (len(accepted), rejected) == (1, [])


def test_a_column_that_no_row_has_is_told_once_and_the_file_does_not_count_as_read(tmp_path: Path) -> None:
    rows = [{name: value for name, value in row.items() if name != "user_id"} for row in events(10)]
    _, rejected, reading = read(tmp_path / "a.jsonl", jsonl(rows))
    assert Counter(row.reason for row in rejected) == {"anonymous": 10, "missing_field": 1}
    assert (reading.ended, reading.detail) == ("unreadable", "no row has user_id")
    some = jsonl(rows + events(1))
    _, rejected, reading = read(tmp_path / "b.jsonl", some)
    assert (Counter(row.reason for row in rejected), reading.ended) == ({"anonymous": 10}, "complete")


@pytest.mark.parametrize("word", ["", "NULL", "null", "\\N", "nan", "None"])
def test_words_for_nothing_are_no_ids(tmp_path: Path, word: str) -> None:
    _, rejected, _ = read(tmp_path / "a.csv", delimited(events(2, user_id=word)))
    assert [row.reason for row in rejected] == ["anonymous"] * 2
    _, rejected, _ = read(tmp_path / "b.csv", delimited(events(2, item_id=word)))
    assert [row.reason for row in rejected] == ["missing_field"] * 2
    accepted, _, _ = read(tmp_path / "c.csv", delimited(events(2, price=word)))
    assert [row.values["price"] for row in accepted] == [None, None]
    accepted, _, _ = read(tmp_path / "d.csv", delimited(events(1, user_id="NULL")), nulls=frozenset())
    assert accepted[0].values["user_id"] == "NULL"


def test_ids_have_no_spaces_around_them(tmp_path: Path) -> None:
    text = (
        "event_id, event_time, user_id, item_id, event_type, request_id\ne1, 2026-01-05 10:00:00, u1, i1,click, r1 \n"
    )
    (row,), _, _ = read(tmp_path / "a.csv", text.encode())
    assert [row.values[name] for name in NAMES if name != "event_time"] == ["e1", "u1", "i1", "click", "r1"]
    _, (rejected,), _ = read(tmp_path / "b.jsonl", jsonl(events(1, user_id="  ")))
    assert rejected.reason == "anonymous"


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("2026-01-05", "is a date without a time of day; a mapping with its format takes it for midnight"),
        (1767607200, "looks like seconds since 1970, 2026-01-05 10:00"),
        (1767607200_000_000, "looks like microseconds since 1970, 2026-01-05 10:00"),
        (1767607200_000_000_000, "looks like nanoseconds"),
        (20260105, "looks like the date 2026-01-05 without a time of day"),
    ],
)
def test_other_units_of_time_are_recognised(tmp_path: Path, told: object, words: str) -> None:
    for name, content in (("a.jsonl", jsonl), ("a.csv", delimited)):
        _, rejected, _ = read(tmp_path / name, content(events(1, event_time=told)))
        assert rejected[0].reason == "invalid_value"
        assert words in rejected[0].detail


def parquet(path: Path, **columns: pa.Array) -> Path:
    table = pa.table({name: [row[name] for row in events(10)] for name in NAMES})
    for name, values in columns.items():
        table = table.append_column(name, values) if name not in NAMES else table.set_column(
            table.column_names.index(name), name, values)  # fmt: skip
    pq.write_table(table, path)
    return path


FAR = pa.array([2**62] * 10, pa.int64()).cast(pa.timestamp("us"), safe=False)
BAD_TEXT = pa.Array.from_buffers(pa.string(), 10, pa.array([b"u1"] * 3 + [b"u\xff"] + [b"u1"] * 6).buffers())
INSTANT = pa.array([datetime(2026, 1, 5, 10, tzinfo=UTC)] * 10)


@pytest.mark.parametrize(
    ("columns", "accepted", "reasons"),
    [
        ({"spare": FAR}, 10, {}),
        ({"spare": BAD_TEXT}, 10, {}),
        ({"user_id": BAD_TEXT}, 9, {"invalid_encoding": 1}),
        ({"event_time": FAR}, 0, {"invalid_value": 10}),
        ({"event_time": INSTANT.cast(pa.timestamp("ns", "Mars/Olympus"))}, 10, {}),
        ({"event_time": INSTANT.cast(pa.timestamp("ms", "+02:30"))}, 10, {}),
        ({"event_time": pa.array([1767607200000] * 10).cast(pa.decimal128(38, 0))}, 10, {}),
        ({"user_id": pa.array(range(10)).cast(pa.decimal128(38, 0))}, 10, {}),
        ({"user_id": pa.array([b"u1"] * 10, pa.binary())}, 10, {}),
        ({"user_id": pa.array(["u1"] * 10).dictionary_encode()}, 10, {}),
        ({"user_id": pa.array([1.0] * 10)}, 0, {"wrong_type": 10}),
        ({"user_id": pa.array([None] * 5 + ["u1"] * 5)}, 5, {"anonymous": 5}),
    ],
)
def test_a_value_of_parquet_costs_its_row_at_most(
    tmp_path: Path, columns: dict[str, pa.Array], accepted: int, reasons: dict[str, int]
) -> None:
    found, rejected, reading = read(parquet(tmp_path / "a.parquet", **columns))
    assert (len(found), Counter(row.reason for row in rejected)) == (accepted, reasons)
    assert (reading.ended, reading.bytes_consumed) == ("complete", reading.bytes)
    if "user_id" not in columns and accepted:
        assert found[0].values["event_time"] == datetime(2026, 1, 5, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"age": 4, "profile": {"q": 1}}, {"age": 4, "q": 1}),
        ({"age": 4, "profile": '{"q": 1}'}, {"age": 4, "q": 1}),
        ({"age": 4, "profile": {"age": 4}}, {"age": 4}),
        ({"age": 4, "profile": {}}, {"age": 4}),
        ({"age": 4, "profile": None}, {"age": 4}),
        ({"age": "", "city": None, "profile": {"age": 4}}, {"age": 4}),
        ({"age": ""}, {}),
        ({"profile": {"a": "", "b": None, "c": [""], "d": 0, "e": False, "f": {}}},
         {"a": "", "c": [""], "d": 0, "e": False, "f": {}}),
    ],
)  # fmt: skip
def test_a_profile_is_all_that_a_row_says(tmp_path: Path, row: dict, told: dict) -> None:
    (tmp_path / "p.jsonl").write_bytes(jsonl([{"user_id": "u1", **row}]))
    assert profiles(tmp_path / "p.jsonl") == {"u1": told}


def test_two_answers_of_a_profile_are_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(jsonl([{"user_id": "u1", "age": 4, "profile": {"age": 5}}]))
    file = RawFile(record="user", name="profiles/p.jsonl", path=tmp_path / "p.jsonl")
    (row,) = parse_file(file, DAY, Options(), Reading())
    assert isinstance(row, Rejected)
    assert (row.reason, row.detail) == (
        "repeated_field", "column age says 4, and profile 5; which one counts is not known"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (pa.array([date(1990, 1, 2), None]), "1990-01-02"),
        (pa.array([1767607200123456, None], pa.timestamp("us", "UTC")), "2026-01-05T10:00:00.123456+00:00"),
        (pa.array([1767607200123456789, None], pa.timestamp("ns")), "2026-01-05T10:00:00.123456"),
        (pa.array([clock(10, 30), None]), "10:30:00"),
        (pa.array([timedelta(minutes=90), None]), "1:30:00"),
        (pa.array([Decimal("12345678901234567890.10"), None]), "12345678901234567890.10"),
        (pa.array([b"caf\xe9", None]), "caf\\xe9"),
        (pa.array([0.5, float("nan")]), 0.5),
        (pa.array([0.5, float("inf")]), 0.5),
        (pa.array([[1.0, float("nan")], None]), [1.0, None]),
        (pa.array([{"born": date(1990, 1, 2)}, None]), {"born": "1990-01-02"}),
        (pa.array([[("a", Decimal(1))], None], pa.map_(pa.string(), pa.decimal128(3, 1))), [["a", "1.0"]]),
    ],
)  # fmt: skip
def test_a_profile_of_parquet_is_told_in_json(tmp_path: Path, values: pa.Array, told: object) -> None:
    pq.write_table(pa.table({"user_id": ["u1", "u2"], "a": values, "b": [1, 2]}), tmp_path / "p.parquet")
    assert profiles(tmp_path / "p.parquet") == {"u1": {"a": told, "b": 1}, "u2": {"b": 2}}


def test_parquet_with_one_name_for_two_columns_is_not_guessed(tmp_path: Path) -> None:
    table = pa.table({name: [row[name] for row in events(10)] for name in NAMES})
    twice = pa.Table.from_arrays([*table.columns, table["item_id"]], [*NAMES, "item_id"])
    pq.write_table(twice, tmp_path / "a.parquet")
    _, (rejected,), reading = read(tmp_path / "a.parquet")
    assert (rejected.reason, reading.rows_unread, reading.ended) == ("repeated_field", 10, "unreadable")


def test_parquet_that_is_damaged_within_says_how_many_rows_are_left(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({name: [f"{row[name]}" for row in events(2000)] for name in NAMES})
    pq.write_table(table, path, row_group_size=500, compression="gzip")
    offset = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 60] = b"\xff" * 60
    accepted, rejected, reading = read(path, bytes(content))
    assert (len(accepted), reading.rows_unread, reading.ended) == (1000, 1000, "broken_off")
    assert "after 1,000 rows, 1,000 are left" in rejected[0].detail
    assert 0.3 * reading.bytes < reading.bytes_consumed < 0.7 * reading.bytes


def landed_day(root: Path) -> Path:
    folder = landing.day_folder(root, DAY)
    (folder / "events").mkdir(parents=True)
    landing.write_jsonl(folder / "catalogue" / "c.jsonl", [{"item_id": "i1"}])
    return folder


def test_what_is_no_data_is_listed_and_links_are_followed_once(tmp_path: Path) -> None:
    folder = landed_day(tmp_path / "logs")
    inside = folder / "events"
    for name in (
        "a.jsonl", "_temporary/0/attempt/b.jsonl", ".hive-staging_1/c.jsonl", "deep/d.jsonl", "e.jsonl.tmp",
        "f.jsonl._COPYING_", "g.inprogress", "_SUCCESS",
    ):  # fmt: skip
        landing.write_lines(inside / name, [jsonl(events(1))])
    outside = tmp_path / "elsewhere"
    landing.write_lines(outside / "h.jsonl", [jsonl(events(1))])
    (inside / "linked").symlink_to(outside)
    (inside / "again").symlink_to(inside)
    (inside / "nowhere.jsonl").symlink_to(tmp_path / "not-there")
    (inside / os.fsdecode(b"caf\xe9.jsonl")).write_bytes(jsonl(events(1)))
    found = landing.landed(tmp_path / "logs", DAY)
    names = [file.name for file in found.files if file.record == "event"]
    assert sorted(names) == ["events/a.jsonl", "events/caf\\xe9.jsonl", "events/deep/d.jsonl", "events/linked/h.jsonl"]
    left_out = {one.name: one.why for one in found.left_out}
    assert set(left_out) == {
        "events/_temporary", "events/.hive-staging_1", "events/e.jsonl.tmp", "events/f.jsonl._COPYING_",
        "events/g.inprogress", "events/_SUCCESS", "events/again", "events/nowhere.jsonl",
    }  # fmt: skip
    assert left_out["events/again"] == "the folder was read already, as events"
    assert [one.name for one in found.left_out if one.is_lost] == ["events/nowhere.jsonl"]
    for file in found.files:
        rows = list(parse_file(file, DAY, Options(), Reading()))
        assert all(isinstance(row, Accepted) for row in rows)


def test_a_day_that_may_still_grow_waits(tmp_path: Path) -> None:
    folder = landed_day(tmp_path)
    file = folder / "events" / "a.jsonl"
    landing.write_lines(file, [jsonl(events(1))])

    def check() -> None:
        landing.check_settled(landing.landed(tmp_path, DAY), tmp_path, DAY, 600)

    with pytest.raises(NotReadyError, match=r"a\.jsonl changed \d+ s ago.* neither _MANIFEST\.json nor _SUCCESS"):
        check()
    (folder / "events" / "_SUCCESS").touch()
    (folder / "catalogue" / "_SUCCESS").touch()
    check()
    (folder / "events" / "_SUCCESS").unlink()
    old = time.time() - 700
    os.utime(file, (old, old))
    check()
