"""Raw rows: every row that goes in is either accepted or rejected with a reason, whatever the bytes are."""

import bz2
import gzip
import json
import lzma
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgrec_core.errors import InputError
from sgrec_core.lake.contracts import load_contract
from sgrec_core.logs import landing
from sgrec_core.logs.landing import RawFile
from sgrec_core.logs.parsing import Accepted, Options, Rejected, item_hash, missing_files, parse_file
from sgrec_core.logs.rows import Limits, Reading
from sgrec_core.logs.streams import MAGIC
from sgrec_core.logs.text import canonical_json

DAY = "2026-01-05"
REASONS = load_contract("events_rejected").column("reason").allowed
GOOD = {
    "event_id": "e1",
    "event_time": "2026-01-05T10:00:00Z",
    "user_id": "u1",
    "item_id": "i1",
    "event_type": "click",
    "request_id": "r1",
    "placement": "home",
    "position": 0,
    "price": 9.5,
    "bid": 0.2,
    "propensity": 0.05,
}


def parse(
    path: Path, content: bytes | None = None, record: landing.Record = "event", **limits: int
) -> tuple[list[Accepted], list[Rejected]]:
    if content is not None:
        path.write_bytes(content)
    reading, options = Reading(), Options(limits=Limits(**limits))
    rows = list(parse_file(RawFile(record=record, name=path.name, path=path), DAY, options, reading))
    assert reading.rows == sum(row.line > 0 for row in rows)
    assert 0 <= reading.bytes_consumed <= reading.bytes == path.stat().st_size
    assert rows, "a file never vanishes from the account"
    rejected = [row for row in rows if isinstance(row, Rejected)]
    assert {row.reason for row in rejected} <= set(REASONS)
    # The key of events_rejected, and text that any UTF-8 table can hold.
    assert len({(row.file, row.line) for row in rejected}) == len(rejected)
    for row in rejected:
        (row.detail + (row.raw_text or "")).encode("utf-8")
    return [row for row in rows if isinstance(row, Accepted)], rejected


def jsonl(*rows: dict) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_a_good_event_keeps_every_column(tmp_path: Path) -> None:
    accepted, rejected = parse(tmp_path / "a.jsonl", jsonl(GOOD))
    assert not rejected
    expected = {**GOOD, "event_time": datetime(2026, 1, 5, 10, tzinfo=UTC), "role": "logged"}
    assert accepted[0].values == expected
    assert accepted[0].line == 1


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({"event_id": None}, "missing_field", "event_id"),
        ({"user_id": ""}, "anonymous", "user_id"),
        ({"event_type": None}, "missing_field", "event_type"),
        ({"user_id": ["u"]}, "wrong_type", "user_id"),
        ({"user_id": True}, "wrong_type", "True"),
        ({"price": "9.5"}, "wrong_type", "'9.5'"),
        ({"position": True}, "wrong_type", "position"),
        ({"placement": 3}, "wrong_type", "placement"),
        ({"event_time": {}}, "wrong_type", "event_time"),
        ({"price": -0.01}, "invalid_value", "-0.01"),
        ({"bid": -5}, "invalid_value", "at least 0"),
        ({"price": 10**400}, "invalid_value", "bits"),
        ({"propensity": 0}, "invalid_value", "column propensity: 0; valid is a number above 0 and at most 1"),
        ({"propensity": -0.1}, "invalid_value", "column propensity: -0.1; valid is a number above 0 and at most 1"),
        ({"propensity": 1.001}, "invalid_value", "column propensity: 1.001; valid is a number above 0 and at most 1"),
        ({"propensity": 10**400}, "invalid_value", "above 0 and at most 1"),
        ({"propensity": "0.5"}, "wrong_type", "column propensity: '0.5' is not a number"),
        ({"propensity": True}, "wrong_type", "column propensity: True is not a number"),
        ({"position": 1.5}, "invalid_value", "whole number"),
        ({"position": 2**31}, "invalid_value", "2147483648"),
        ({"event_time": "yesterday"}, "invalid_value", "ISO 8601"),
        ({"event_time": 10**30}, "invalid_value", "event_time"),
        ({"item_id": "i\n1"}, "invalid_value", "control"),
        ({"event_type": "hover"}, "unknown_event_type", "impression, click"),
        ({"event_id": "e" * 257}, "too_long", "257"),
        ({"placement": "p" * 10_000}, "too_long", "10,000"),
        ({"item_id": "\ud800"}, "invalid_encoding", "surrogate"),
        ({"event_time": "2026-01-04T23:59:59.999Z"}, "other_day", "night 2026-01-04"),
        ({"event_time": "2026-01-06T02:00:00Z"}, "other_day", "night 2026-01-06"),
        ({"event_time": "2026-01-06T02:00:01Z"}, "future_time", "2026-01-06 02:00"),
        ({"event_time": 4102444800000}, "future_time", "2100"),
    ],
)
def test_a_bad_value_is_rejected_with_reason_and_words(tmp_path: Path, changes: dict, reason: str, words: str) -> None:
    accepted, rejected = parse(tmp_path / "a.jsonl", jsonl({**GOOD, **changes}, GOOD))
    assert [row.line for row in accepted] == [2]
    assert (rejected[0].reason, rejected[0].line, rejected[0].file) == (reason, 1, "a.jsonl")
    assert words in rejected[0].detail
    assert rejected[0].raw_text


@pytest.mark.parametrize(("said", "kept"), [({}, None), ({"propensity": None}, None), ({"propensity": 1}, 1.0)])
def test_a_propensity_may_be_left_out(tmp_path: Path, said: dict, kept: float | None) -> None:
    row = {name: value for name, value in GOOD.items() if name != "propensity"}
    accepted, _ = parse(tmp_path / "a.jsonl", jsonl({**row, **said}))
    assert accepted[0].values["propensity"] == kept


def test_a_propensity_of_a_table_of_text_is_a_number(tmp_path: Path) -> None:
    row = {name: value for name, value in GOOD.items() if name != "propensity"}
    lines = [
        f"{','.join(row)},propensity",
        *(f"{','.join(map(str, row.values()))},{p}" for p in ("1e-3", "inf", "", "0")),
    ]
    accepted, rejected = parse(tmp_path / "a.csv", "\n".join(lines).encode())
    assert [row.values["propensity"] for row in accepted] == [1e-3, None]
    assert [(row.line, row.reason, row.detail) for row in rejected] == [
        (3, "invalid_value", "column propensity: inf; valid is a finite number"),
        (5, "invalid_value", "column propensity: 0.0; valid is a number above 0 and at most 1"),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"event_id": "e1"', "invalid_json"),
        (b'{"price": NaN}', "invalid_json"),
        (b"not json", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b"9" * 5000, "invalid_json"),
        (b"[1]", "wrong_type"),
        (b"null", "wrong_type"),
        (json.dumps({**GOOD, "item_id": "caf\u00e9"}, ensure_ascii=False).encode("latin-1"), "invalid_encoding"),
        (b'{"event_id": "' + b"x" * 2_000_000 + b'"}', "too_long"),
    ],
)
def test_a_line_that_is_no_object_is_rejected_and_the_next_is_read(tmp_path: Path, line: bytes, reason: str) -> None:
    accepted, rejected = parse(tmp_path / "a.jsonl", line.replace(b"\n", b"") + b"\n" + jsonl(GOOD))
    assert [row.reason for row in rejected] == [reason]
    assert [row.line for row in accepted] == [2]


@pytest.mark.parametrize(
    "time",
    [
        "2026-01-05T10:00:00",
        "2026-01-05T10:00:00+00:00",
        "2026-01-05T12:00:00+02:00",
        "2026-01-05 10:00Z",
        1767607200000,
    ],
)
def test_times_with_zone_without_zone_and_in_milliseconds_agree(tmp_path: Path, time: object) -> None:
    accepted, _ = parse(tmp_path / "a.jsonl", jsonl({**GOOD, "event_time": time}))
    assert accepted[0].values["event_time"] == datetime(2026, 1, 5, 10, tzinfo=UTC)


def test_formats_and_compressions_give_the_same_rows(tmp_path: Path) -> None:
    rows = [
        {**GOOD, "event_id": f"e{number}", "placement": 'a, "b"\nc' if number == 1 else None} for number in range(3)
    ]
    for row in rows:
        row["placement"] = row["placement"] and row["placement"].replace("\n", " ")
    header = list(GOOD)
    lines = [",".join(header)]
    for row in rows:
        lines.append(",".join('"' + str("" if row[n] is None else row[n]).replace('"', '""') + '"' for n in header))
    csv_text = "\r\n".join(lines).encode()
    text = jsonl(*rows)
    zstd = pa.BufferOutputStream()
    with pa.CompressedOutputStream(zstd, "zstd") as stream:
        stream.write(text)
    contents = {
        "a.jsonl": text,
        "bom.jsonl": b"\xef\xbb\xbf" + text,
        "noend.ndjson": text.rstrip(b"\n"),
        "blank.jsonl": text.replace(b"\n", b"\r\n\r\n"),
        "a.jsonl.gz": gzip.compress(text[:50]) + gzip.compress(text[50:]),
        "a.jsonl.bz2": bz2.compress(text),
        "a.jsonl.xz": lzma.compress(text),
        "a.jsonl.zst": zstd.getvalue().to_pybytes(),
        "a.csv": csv_text,
        "a.csv.gz": gzip.compress(csv_text),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    table = pa.table({name: [row[name] for row in rows] for name in header})
    times = pa.array([datetime(2026, 1, 5, 10, tzinfo=UTC)] * 3, pa.timestamp("ns", "UTC"))
    pq.write_table(table.set_column(1, "event_time", times), tmp_path / "a.parquet")
    results = {}
    for name in [*contents, "a.parquet"]:
        accepted, rejected = parse(tmp_path / name)
        assert not rejected, (name, rejected)
        results[name] = [row.values for row in accepted]
    assert all(values == results["a.jsonl"] for values in results.values())


def test_a_quoted_value_may_span_lines_and_a_stray_quote_costs_one_row(tmp_path: Path) -> None:
    text = 'item_id,title\ni1,"two\nlines"\ni2,"never closed\ni3,5" nail\ni4,plain\n'
    accepted, rejected = parse(tmp_path / "a.csv", text.encode(), record="item")
    assert [(row.line, row.values["item_id"], row.values["title"]) for row in accepted] == [
        (2, "i1", "two\nlines"),
        (5, "i3", '5" nail'),
        (6, "i4", "plain"),
    ]
    assert [(row.line, row.reason) for row in rejected] == [(4, "invalid_value")]


def test_a_csv_row_with_too_few_or_too_many_values(tmp_path: Path) -> None:
    _, rejected = parse(tmp_path / "a.csv", b"item_id,title\ni1\ni2,a,b\n", record="item")
    assert [(row.line, row.reason) for row in rejected] == [(2, "missing_field"), (3, "invalid_value")]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_truncated_file_keeps_what_was_decoded(tmp_path: Path, compress) -> None:
    import random

    noise = random.Random(0)
    # Incompressible ids, so that half of the compressed bytes is about half of the rows.
    rows = [{**GOOD, "event_id": f"{noise.getrandbits(256):x}"} for _ in range(30_000)]
    name = {"gzip": "a.jsonl.gz", "bz2": "a.jsonl.bz2", "lzma": "a.jsonl.xz"}[compress.__module__]
    whole = compress(jsonl(*rows))
    accepted, rejected = parse(tmp_path / name, whole[: len(whole) // 2])
    assert 5_000 < len(accepted) < 25_000
    assert [row.values["event_id"] for row in accepted] == [row["event_id"] for row in rows[: len(accepted)]]
    assert [(row.reason, row.line) for row in rejected] == [("truncated_file", 0)]
    damaged = whole[:-4] + bytes(byte ^ 0xFF for byte in whole[-4:])
    accepted, rejected = parse(tmp_path / name, damaged)
    assert [row.reason for row in rejected] == ["truncated_file"]
    assert len(accepted) > 5_000


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b"", "empty_file"),
        ("a.jsonl.gz", b"", "empty_file"),
        ("a.jsonl", b"\n \n", "empty_file"),
        ("a.csv", ",".join(GOOD).encode(), "empty_file"),
        ("a.csv", b"event_id,user_id\n", "missing_field"),
        ("a.parquet", b"", "empty_file"),
        ("a.parquet", b"PAR1 no", "truncated_file"),
        ("a.jsonl.gz", b"plain text", "truncated_file"),
        ("a.txt", b"hello", "missing_field"),
        ("a.xlsx", b"hello", "unreadable_file"),
        ("a.parquet.gz", b"hello", "unreadable_file"),
    ],
)
def test_a_file_as_a_whole_can_be_bad(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    accepted, rejected = parse(tmp_path / name, content)
    assert (accepted, [(row.reason, row.line) for row in rejected]) == ([], [(reason, 0)])


def test_an_absurdly_long_line_costs_bounded_memory_and_tells_its_length(tmp_path: Path) -> None:
    length = 64_000_000
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"x" * length + b"\n" + jsonl(GOOD), 1))
    tracemalloc.start()
    accepted, rejected = parse(path, line_bytes=10_000, raw_text=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000
    assert len(accepted) == 1
    assert rejected[0].reason == "too_long"
    assert f"{length:,}" in rejected[0].raw_text
    assert len(rejected[0].raw_text) < 200


def test_profiles_become_canonical_json(tmp_path: Path) -> None:
    accepted, rejected = parse(tmp_path / "p.csv", b"user_id,b,a,empty\nu1,2,x,\n", record="user")
    assert accepted[0].values == {"user_id": "u1", "profile": '{"a":"x","b":"2"}'}
    accepted, rejected = parse(
        tmp_path / "p.jsonl", jsonl({"user_id": 7, "profile": {"b": 1, "a": None}}), record="user"
    )
    assert accepted[0].values == {"user_id": "7", "profile": '{"b":1}'}
    _, rejected = parse(tmp_path / "q.jsonl", jsonl({"user_id": "u", "profile": [1]}), record="user")
    assert rejected[0].reason == "wrong_type"


def test_items_carry_a_hash_of_their_text_alone(tmp_path: Path) -> None:
    row = {"item_id": 1, "title": "A", "description": "B", "brand": None, "category": "C", "price": 1}
    accepted, _ = parse(tmp_path / "i.jsonl", jsonl(row, {**row, "price": 2}, {**row, "title": "AB"}), record="item")
    hashes = [item.values["item_hash"] for item in accepted]
    assert hashes[0] == hashes[1] == item_hash("A", "B", None, "C") != hashes[2]
    assert item_hash("A", None, None, None) != item_hash(None, "A", None, None)
    _, rejected = parse(tmp_path / "j.jsonl", jsonl({"item_id": "1", "supplied_codes": [1, -2]}), record="item")
    assert rejected[0].reason == "invalid_value"
    accepted, _ = parse(tmp_path / "k.csv", b'item_id,supplied_codes\n1,"[3,4]"\n', record="item")
    assert accepted[0].values["supplied_codes"] == [3, 4]


def test_manifest_lists_files_that_are_missing(tmp_path: Path) -> None:
    folder = landing.day_folder(tmp_path, DAY)
    landing.write_jsonl(folder / "events" / "a.jsonl", [GOOD])
    landing.write_jsonl(folder / "catalogue" / "a.jsonl", [{"item_id": "i1"}])
    assert missing_files(landing.landed(tmp_path, DAY), tmp_path, DAY) == []
    names = ["events/a.jsonl", "events/b.jsonl", "catalogue/c.csv"]
    (folder / landing.MANIFEST).write_text(json.dumps({"files": names}))
    assert [
        (row.file, row.record, row.reason) for row in missing_files(landing.landed(tmp_path, DAY), tmp_path, DAY)
    ] == [
        ("catalogue/c.csv", "item", "missing_file"),
        ("events/b.jsonl", "event", "missing_file"),
    ]
    (folder / landing.MANIFEST).write_text("{")
    assert [row.reason for row in missing_files(landing.landed(tmp_path, DAY), tmp_path, DAY)] == ["invalid_json"]


def test_a_day_without_events_names_folder_and_layout(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no events files of 2026-01-05 .*day=2026-01-05.events; expected layout: <landing>"
    ):
        landing.raw_files(tmp_path, DAY)


def test_fingerprint_follows_content_not_time(tmp_path: Path) -> None:
    folder = landing.day_folder(tmp_path, DAY)
    for name in ("events", "catalogue"):
        landing.write_jsonl(folder / name / "a.jsonl.gz", [{"item_id": "i1"}])
    before = landing.content_fingerprint(landing.landed(tmp_path, DAY), tmp_path, DAY)
    landing.write_jsonl(folder / "events" / "a.jsonl.gz", [{"item_id": "i1"}])
    assert landing.content_fingerprint(landing.landed(tmp_path, DAY), tmp_path, DAY) == before
    landing.write_jsonl(folder / "events" / "a.jsonl.gz", [{"item_id": "i2"}])
    assert landing.content_fingerprint(landing.landed(tmp_path, DAY), tmp_path, DAY) != before


ENDINGS = ("json", "tsv", "txt", "jsonl", "jsonl.gz", "jsonl.bz2", "jsonl.xz", "jsonl.zst", "csv", "csv.gz", "parquet")
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=400),
    prefix=st.sampled_from([b"", gzip.compress(jsonl(GOOD)), b"event_id,user_id\n", jsonl(GOOD), b"\x1f\x8b\x08"]),
    ending=st.sampled_from(ENDINGS),
    record=st.sampled_from(landing.RECORDS),
)
def test_any_bytes_are_accounted_for(tmp_path: Path, content: bytes, prefix: bytes, ending: str, record) -> None:
    accepted, rejected = parse(tmp_path / f"a.{ending}", prefix + content, record=record)
    is_plain = not (prefix + content).startswith(tuple(MAGIC)) and all(
        row.reason != "invalid_encoding" for row in rejected
    )
    is_array = (prefix + content).strip().startswith(b"[")
    if ending == "jsonl" and is_plain and not is_array:
        text = prefix + content
        text = text if b"\n" in text else text.replace(b"\r", b"\n")
        rows = [line for line in text.split(b"\n") if line.strip(b"\r") and not line.isspace()]
        assert len(accepted) + sum(row.line > 0 for row in rejected) == len(rows)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(st.sampled_from([*GOOD, "role", "title", "profile", "supplied_codes"]), ANY_JSON),
    record=st.sampled_from(landing.RECORDS),
)
def test_any_values_are_accepted_as_the_contract_wants_or_rejected(tmp_path: Path, changes: dict, record) -> None:
    accepted, rejected = parse(tmp_path / "a.jsonl", jsonl({**GOOD, **changes}), record=record)
    assert len(accepted) + sum(row.line > 0 for row in rejected) == 1
    if accepted:
        contract = load_contract({"event": "events", "item": "items", "user": "users"}[record])
        table = pa.Table.from_pylist([{"day": datetime.fromisoformat(DAY).date(), **accepted[0].values}])
        contract.check(contract.conform(table))


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=5))
def test_canonical_json_does_not_depend_on_order(values: dict) -> None:
    backwards = dict(reversed(list(values.items())))
    assert canonical_json(values) == canonical_json(backwards)
    assert json.loads(canonical_json(values)) == values
