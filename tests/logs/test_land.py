"""``sgrec land`` loses nothing without a word: names that are there twice, links, tables, and values JSON lacks."""

import gzip
import json
import sqlite3
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from sgrec_core.logs.land import LandedFiles, land
from sgrec_core.logs.mapping import LogMapping
from sgrec_core.logs.parsing import Options

DAY = "day=2026-01-05"
HEADER = "at,who,what\n"
COLUMNS = {
    "event_time": {"from": "at", "unit": "s"},
    "user_id": "who",
    "item_id": "what",
    "event_type": {"const": "click"},
}


def landed(tmp_path: Path, *sources: object) -> LandedFiles:
    path = tmp_path / "map.yaml"
    events = {"files": "ev*", "columns": COLUMNS, "session_minutes": 30}
    catalogue = {"files": "items*", "columns": {"item_id": "id", "title": "name"}}
    path.write_text(yaml.safe_dump({"events": events, "catalogue": catalogue}))
    options = Options(mapping=LogMapping.read(path))
    return land([str(source) for source in sources], options, tmp_path / "to", lambda name: None)


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def rows(tmp_path: Path) -> list[str]:
    files = sorted((tmp_path / "to" / DAY / "events").iterdir())
    lines = [line for path in files for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    return [line for line in lines if line != HEADER.strip()]


def table(path: Path, *users: str) -> str:
    with sqlite3.connect(path) as connection:
        connection.execute("create table if not exists events (at integer, who text, what blob)")
        connection.executemany("insert into events values (1767607200, ?, ?)", [(user, b"i1") for user in users])
    return f"sqlite:///{path}#events"


def test_catalogues_of_one_name_in_two_folders_are_both_there(tmp_path: Path) -> None:
    put(tmp_path / "raw" / "ev.csv", HEADER + "1767607200,u1,i1\n")
    for number in (1, 2):
        put(tmp_path / "raw" / f"part{number}" / "items.csv", f"id,name\ni{number},One\n")
    landed(tmp_path, tmp_path / "raw")
    texts = {path.read_text() for path in (tmp_path / "to" / DAY / "catalogue").iterdir()}
    assert texts == {"id,name\ni1,One\n", "id,name\ni2,One\n"}
    listed = json.loads((tmp_path / "to" / DAY / "_MANIFEST.json").read_text())["files"]
    assert len([name for name in listed if name.startswith("catalogue/items")]) == 2


def test_what_a_night_would_not_read_is_not_landed_and_links_are_followed(tmp_path: Path) -> None:
    raw, elsewhere = tmp_path / "raw", tmp_path / "elsewhere"
    for place in ("ev.csv", "_temporary/0/ev2.csv", ".hidden/ev3.csv", "ev4.csv.inprogress"):
        put(raw / place, HEADER + f"1767607200,{place},i1\n")
    put(elsewhere / "ev5.csv", HEADER + "1767607200,linked,i1\n")
    put(elsewhere / "things.csv", "id,name\ni1,One\n")
    (raw / "more").symlink_to("../elsewhere")
    (raw / "items.csv").symlink_to("../elsewhere/things.csv")
    (raw / "ev6.csv").symlink_to("nowhere")
    put(raw / "again" / "ev.csv", (raw / "ev.csv").read_text())
    found = landed(tmp_path, raw)
    assert rows(tmp_path) == ["1767607200,ev.csv,i1", "1767607200,linked,i1"]
    assert found.rows == {"2026-01-05": 2}
    for said in ("_temporary: names that begin", ".hidden: names that", "still being written", "landed once"):
        assert any(said in line for line in found.left_out), said
    assert any("ev6.csv: a link to what is not there" in line for line in found.broken)
    items = tmp_path / "to" / DAY / "catalogue" / "items.csv"
    assert items.read_text() == "id,name\ni1,One\n"
    assert not items.is_symlink()


def test_tables_of_one_name_are_both_there_and_a_later_row_names_its_day(tmp_path: Path) -> None:
    one, other = table(tmp_path / "one.db", "u1"), table(tmp_path / "other.db", "u2")
    assert landed(tmp_path, one, other).again == []
    assert {(json.loads(row)["who"], json.loads(row)["what"]) for row in rows(tmp_path)} == {("u1", "i1"), ("u2", "i1")}
    assert landed(tmp_path, one, other).again == []
    table(tmp_path / "one.db", "u3")
    assert landed(tmp_path, one).again == ["2026-01-05"]
    assert len(rows(tmp_path)) == 3


def test_values_of_parquet_are_landed_as_they_would_be_read(tmp_path: Path) -> None:
    kinds = pa.decimal128(20, 2)
    columns = {
        "at": pa.array([1767607200.0, 1767607200.5]),
        "who": pa.array([Decimal("12.00"), Decimal("9.50")], kinds),
        "what": pa.array([float("nan"), float("inf")]),
    }
    pq.write_table(pa.table(columns), tmp_path / "ev.parquet")
    landed(tmp_path, tmp_path / "ev.parquet")
    assert rows(tmp_path) == [
        '{"at": 1767607200.0, "who": 12, "what": null}',
        '{"at": 1767607200.5, "who": 9.5, "what": "inf"}',
    ]


@pytest.mark.parametrize("mapped", [True, False])
def test_columns_of_parquet_that_nobody_reads_are_landed_too(tmp_path: Path, mapped: bool) -> None:
    kept = {"app": [{"version": 2}], "born": [date(1990, 1, 2)], "weight": [float("nan")], "what": ["i1"]}
    own = {"at": [1767607200], "who": ["u1"]}
    if not mapped:
        own = dict.fromkeys(("event_id", "user_id", "item_id", "event_type", "request_id"), ["x"])
        own["event_time"] = ["2026-01-05T10:00:00Z"]
    pq.write_table(pa.table({**own, **kept}), tmp_path / "ev.parquet")
    if mapped:
        landed(tmp_path, tmp_path / "ev.parquet")
    else:
        land([str(tmp_path / "ev.parquet")], Options(), tmp_path / "to", lambda name: None)
    (row,) = (json.loads(row) for row in rows(tmp_path))
    told = {"app": {"version": 2}, "born": "1990-01-02", "weight": None, "what": "i1"}
    assert row == {**{name: values[0] for name, values in own.items()}, **told}


def test_elements_of_an_array_are_landed_as_they_are_each_on_a_line(tmp_path: Path) -> None:
    good = {"at": 1767607200, "who": "u1", "what": "i1", "x": [1, {"y": 2}]}
    array = json.dumps([good, {**good, "who": "u2"}, {**good, "x": float("nan")}], indent=2)
    put(tmp_path / "ev.json", array.replace("1767607200", "1767607200.10", 1).replace("\n", "\r\n"))
    found = landed(tmp_path, tmp_path / "ev.json")
    assert rows(tmp_path) == [
        '{ "at": 1767607200.10, "who": "u1", "what": "i1", "x": [ 1, { "y": 2 } ] }',
        '{ "at": 1767607200, "who": "u2", "what": "i1", "x": [ 1, { "y": 2 } ] }',
    ]
    (lost,) = (tmp_path / "to" / "unplaced" / "events").iterdir()
    text = '{ "at": 1767607200, "who": "u1", "what": "i1", "x": NaN }\n'
    assert gzip.decompress(lost.read_bytes()).decode() == text
    assert [why.partition(":")[0] for why in found.unplaced] == ["invalid_json"]


def test_of_a_line_that_is_too_long_it_is_said_that_it_is_cut(tmp_path: Path) -> None:
    put(tmp_path / "ev.csv", HEADER + f"1767607200,u1,i1\n1767607200,u2,{'x' * 1_000_001}\n")
    found = landed(tmp_path, tmp_path / "ev.csv")
    (why,) = found.unplaced
    assert why.startswith("too_long: the row has 1,000,015 bytes")
    assert why.endswith("; only its beginning is kept")
    assert found.rows == {"2026-01-05": 1}


def test_without_a_mapping_names_say_who_is_who_and_deeds_are_events(tmp_path: Path) -> None:
    header = "event_id,event_time,user_id,item_id,event_type,request_id\n"
    for number, name in enumerate(("events", "user_clicks", "item_views")):
        put(tmp_path / "raw" / f"{name}.csv", f"{header}e{number},2026-01-05T10:00:00Z,u1,i1,click,r1\n")
    put(tmp_path / "raw" / "catalogue" / "part-0.csv", "item_id,title\ni1,One\n")
    put(tmp_path / "raw" / "catalog.csv", "item_id,title\ni2,Two\n")
    put(tmp_path / "raw" / "users.csv", "user_id,age\nu1,30\n")
    found = land([str(tmp_path / "raw")], Options(), tmp_path / "to", lambda name: None)
    assert found.rows == {"2026-01-05": 3}
    assert found.whole == ["catalogue/catalog.csv", "catalogue/part-0.csv", "profiles/users.csv"]
    assert (found.broken, found.left_out) == ([], [])


def test_the_files_of_a_delta_table_in_a_folder_are_not_taken_for_its_rows(tmp_path: Path) -> None:
    from deltalake import DeltaTable, write_deltalake

    place = tmp_path / "raw" / "ev"
    put(tmp_path / "raw" / "ev.csv", HEADER + "1767607200,u1,i1\n")
    write_deltalake(str(place), pa.table({"at": [1767607200, 1767607201], "who": ["u2", "u3"], "what": ["i1", "i1"]}))
    DeltaTable(str(place)).delete("who = 'u3'")
    found = landed(tmp_path, tmp_path / "raw")
    assert found.broken == [f"{place}: a Delta table; land it by its own name"]
    assert rows(tmp_path) == ["1767607200,u1,i1"]
    landed(tmp_path, place)
    assert [row for row in rows(tmp_path) if "u3" in row] == []


def test_a_file_that_has_changed_names_what_it_may_replace(tmp_path: Path) -> None:
    put(tmp_path / "ev1.csv", HEADER + "1767607200,u1,i1\n")
    other = put(tmp_path / "ev10.csv", HEADER + "1767607200,u9,i9\n")
    assert landed(tmp_path, tmp_path / "ev1.csv", other).beside == []
    (before,) = (tmp_path / "to" / DAY / "events").glob("ev1-*")
    repaired = put(tmp_path / "ev1.csv", HEADER + "1767607200,u2,i1\n")
    assert landed(tmp_path, repaired, other).beside == [f"{DAY}/events/{before.name}"]
    assert landed(tmp_path, repaired).beside == [f"{DAY}/events/{before.name}"], "as long as it is there"
