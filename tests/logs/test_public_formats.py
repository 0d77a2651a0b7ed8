"""Four public logs in their published layouts: check-input, a suggested and the shipped mapping, land, and ingest."""

from collections import Counter
from pathlib import Path

import pyarrow.compute as pc
import pytest
import yaml
from public_formats import DAY, FORMATS
from rich.console import Console
from stage_runs import last_run
from typer.testing import CliRunner

from jobs import ingest_events
from sgrec_core.cli import app
from sgrec_core.lake import Lake
from sgrec_core.lake.contracts import SCHEMAS
from sgrec_core.logs.mapping import LogMapping
from sgrec_core.quality.gates import check_stage
from sgrec_core.runtime.job import Job
from sgrec_core.settings import Settings


def sgrec(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    return done.exit_code, done.output + (str(done.exception) if done.exception else "")


def land(tmp_path: Path, name: str, mapping: str | None = None) -> tuple[Path, dict[str, int]]:
    counts = FORMATS[name](tmp_path / "raw")
    code, said = sgrec("land", str(tmp_path / "raw"), "--map", mapping or name, "--to", str(tmp_path / "logs"))
    assert code == 0, said
    return tmp_path / "logs", counts


def ingest(tmp_path: Path, root: Path, mapping: Path) -> Settings:
    settings = Settings(home=tmp_path / "home", input=f"logs:{root}", threads=1, ingest={"mapping": mapping})
    assert Job("ingest_events", DAY, settings).execute(ingest_events.run, Console(quiet=True)) == 0
    return settings


@pytest.mark.spark
@pytest.mark.parametrize("name", FORMATS)
def test_a_shipped_mapping_brings_every_row_in(tmp_path: Path, name: str) -> None:
    root, counts = land(tmp_path, name)
    settings = ingest(tmp_path, root, SCHEMAS / "maps" / f"{name}.yaml")
    lake = Lake(settings.lake_root)
    assert check_stage(settings, "ingest_events", DAY).message is None
    events = lake.read("events", where={"day": DAY})
    assert Counter(events["event_type"].to_pylist()) == Counter(counts)
    assert lake.count("events_rejected", where={"day": DAY}) == 0
    assert lake.count("items", where={"day": DAY}) == 20
    assert pc.all(pc.greater(pc.utf8_length(events["request_id"]), 0)).as_py()
    facts = last_run(settings, DAY, "ingest_events")["facts"]
    files = lake.read("ingest_files", where={"day": DAY}).to_pylist()
    assert facts["rows_in"] == sum(row["rows_seen"] for row in files)
    assert all(row["rows_seen"] == row["rows_used"] + row["rows_empty"] for row in files)

    if name == "retailrocket":
        items = {row["item_id"]: row for row in lake.read("items", where={"day": DAY}).to_pylist()}
        # The last value of each property counts, whatever the order of the rows.
        assert (items["5003"]["category"], items["5003"]["price"]) == ("103", 3.5)
        assert sum(row["rows_empty"] for row in files) == 20
        assert events.group_by(["user_id", "request_id"]).aggregate([]).num_rows == 200, "a request an item"
    if name == "mind":
        assert max(events["position"].to_pylist()) == 3
        assert lake.read("items")["title"][0].as_py().endswith('says "much"')


@pytest.mark.parametrize("name", FORMATS)
def test_without_a_mapping_check_input_says_what_is_wrong_in_a_sentence(tmp_path: Path, name: str) -> None:
    root, _ = land(tmp_path, name)
    code, said = sgrec("check-input", "--input", f"logs:{root}")
    assert code == 1
    assert "0 accepted of" in said
    assert f"a night of {DAY} would stop here" in said
    if name == "retailrocket":
        hint = "did you mean event_time, user_id, item_id, event_type by timestamp, visitorid, itemid, event?"
        assert (
            f"0 accepted of 200 rows: the header has timestamp, visitorid, event, itemid, transactionid; {hint}" in said
        )
    else:
        assert "no header" in said or "did you mean" in said
    code, said = sgrec("check-input", "--input", f"logs:{root}", "--map", name)
    assert code == 0, said


@pytest.mark.parametrize("name", FORMATS)
def test_a_suggested_mapping_is_right(tmp_path: Path, name: str) -> None:
    root, counts = land(tmp_path, name)
    code, said = sgrec("check-input", "--input", f"logs:{root}", "--suggest")
    assert code == 0, said
    path = tmp_path / "suggested.yaml"
    path.write_text(said)
    assert LogMapping.read(path)
    code, said = sgrec("check-input", "--input", f"logs:{root}", "--map", str(path))
    assert code == 0, said
    assert f"{DAY}: {sum(counts.values()):,} events would be accepted, 20 items" in said
    assert "rejected" not in said
    if name == "yoochoose":
        made = {
            files["files"][:14]: files["columns"]["event_type"] for files in yaml.safe_load(path.read_text())["events"]
        }
        assert made == {"yoochoose-buys": {"const": "conversion"}, "yoochoose-clic": {"const": "click"}}


def test_late_rows_go_to_their_own_days_which_are_named_once(tmp_path: Path) -> None:
    root, _ = land(tmp_path, "retailrocket")
    late = tmp_path / "events_late.csv"
    late.write_text(
        "timestamp,visitorid,event,itemid,transactionid\n"
        "1433203266787,1,view,5001,\n1433300000000,1,view,5001,\nnever,1,view,5001,\n"
    )
    arguments = ("land", str(late), "--map", "retailrocket", "--to", str(root))
    code, said = sgrec(*arguments)
    assert code == 1, "a third of the rows has no day"
    assert f"run again, they have got rows since: {DAY}" in said
    assert "no day is known of 1 rows" in said
    assert "'never' is no time; the mapping says a number of ms since 1970" in said
    assert sorted(folder.name for folder in root.iterdir()) == ["day=2015-06-02", "day=2015-06-03", "unplaced"]
    manifest = yaml.safe_load((root / f"day={DAY}" / "_MANIFEST.json").read_text())["files"]
    assert len([name for name in manifest if name.startswith("events/")]) == 2
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    code, said = sgrec(*arguments)
    assert "run again" not in said
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    code, said = sgrec("check-input", "--input", f"logs:{root}", "--map", "retailrocket", "--day", DAY)
    assert f"{DAY}: 201 events would be accepted" in said


def test_tables_and_databases_land_too(tmp_path: Path) -> None:
    import sqlite3

    import pyarrow as pa
    import pyarrow.parquet as pq
    from deltalake import write_deltalake

    rows = {
        "event_id": ["a", "b"],
        "event_time": ["2026-01-05T10:00:00Z", "2026-01-06T10:00:00Z"],
        "user_id": ["u", "u"],
        "item_id": ["i", "i"],
        "event_type": ["click", "click"],
        "request_id": ["r", "s"],
    }
    table = pa.table(rows)
    write_deltalake(str(tmp_path / "delta" / "events"), table)
    (tmp_path / "parquet").mkdir()
    pq.write_table(table, tmp_path / "parquet" / "events.parquet")
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute(f"create table events ({', '.join(rows)})")
        connection.executemany("insert into events values (?,?,?,?,?,?)", zip(*rows.values(), strict=True))
    (tmp_path / "items.csv").write_text("item_id,title\ni,One\n")
    sources = {
        "delta": tmp_path / "delta" / "events",
        "parquet": tmp_path / "parquet",
        "database": f"sqlite:///{tmp_path}/shop.db#events",
    }
    for name, source in sources.items():
        root = tmp_path / "logs" / name
        code, said = sgrec("land", str(source), str(tmp_path / "items.csv"), "--to", str(root))
        assert code == 0, said
        for day in ("2026-01-05", "2026-01-06"):
            code, said = sgrec("check-input", "--input", f"logs:{root}", "--day", day)
            assert code == 0, said
            assert f"{day}: 1 events would be accepted, 1 items" in said
    code, said = sgrec("land", f"sqlite:///{tmp_path}/shop.db#visits", "--to", str(tmp_path / "x"))
    assert "there is no table visits" in said
    code, said = sgrec("land", f"sqlite:///{tmp_path}/shop.db", "--to", str(tmp_path / "x"))
    assert "name the table, as in sqlite:///shop.db#events" in said


@pytest.mark.spark
def test_what_a_user_did_with_one_item_is_one_request_until_the_gap(tmp_path: Path) -> None:
    day = tmp_path / "logs" / f"day={DAY}"
    (day / "events").mkdir(parents=True)
    start = 1433203200000
    visits = [(0, "view", 1), (2, "view", 2), (3, "addtocart", 1), (36, "view", 1), (5, "transaction", 1)]
    lines = [f"{start + minute * 60_000},7,{kind},{item}," for minute, kind, item in visits]
    (day / "events" / "events.csv").write_text("\n".join(["timestamp,visitorid,event,itemid,transactionid", *lines]))
    (day / "catalogue").mkdir()
    (day / "catalogue" / "item_properties.csv").write_text(
        "timestamp,itemid,property,value\n" + "".join(f"1,{item},categoryid,9\n" for item in (1, 2))
    )
    settings = ingest(tmp_path, tmp_path / "logs", SCHEMAS / "maps" / "retailrocket.yaml")
    events = Lake(settings.lake_root).read("events").sort_by("event_time").to_pylist()
    assert [(event["item_id"], event["request_id"][:7], event["request_id"][-15:-10]) for event in events] == [
        ("1", "1 from ", "00:00"), ("2", "2 from ", "00:02"), ("1", "1 from ", "00:00"), ("1", "1 from ", "00:00"),
        ("1", "1 from ", "00:36"),
    ]  # fmt: skip
