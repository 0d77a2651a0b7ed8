"""Bad input through the real ingest: nothing is lost, nothing is dropped silently, a re-run changes nothing."""

import bz2
import gzip
import json
import os
import random
import socket
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from stage_runs import last_run

from jobs import ingest_events
from sgrec_core.errors import InputError
from sgrec_core.lake import Lake
from sgrec_core.lake.maintenance import maintain_all
from sgrec_core.lake.storage import STAGED
from sgrec_core.logs import landing
from sgrec_core.logs.spark import in_tasks
from sgrec_core.quality.gates import check_stage
from sgrec_core.runtime.job import Job
from sgrec_core.settings import Settings

DAY = "2026-01-05"


def event(number: int, **changes: object) -> dict[str, object]:
    return {
        "event_id": f"e{number}",
        "event_time": "2026-01-05T10:00:00Z",
        "user_id": "u1",
        "item_id": "i1",
        "event_type": "click",
        "request_id": f"r{number}",
        **changes,
    }


def write_faulty_day(root: Path) -> None:
    """A day with every kind of bad row that the job must survive."""
    folder = landing.day_folder(root, DAY)
    events = folder / "events"
    bad_lines: list[str | bytes] = [
        landing.json_line(event(1)),
        "{broken",
        landing.json_line(event(2, price=-3)),
        landing.json_line(event(3, item_id="nowhere")),
        landing.json_line(event(4, event_time="2026-01-04T10:00:00Z")),
        landing.json_line(event(5, event_time="2027-01-04T10:00:00Z")),
        landing.json_line(event(1, user_id="u2")),
        landing.json_line(event(6, position="first")),
        b'{"event_id": "caf\xe9"}',
        '{"event_id": "' + "x" * 50_000 + '"}',
        landing.json_line(event(7, event_type="hover")),
        landing.json_line({"event_id": "e8"}),
    ]
    landing.write_lines(events / "a.jsonl", bad_lines)
    # The id of an event of an unknown item is free: e3 is accepted here; e1 is a copy once more.
    landing.write_csv(
        events / "b.csv",
        [
            {**event(3), "placement": "", "propensity": ""},
            {**event(9), "placement": "home", "propensity": 0.25},
            {**event(1), "placement": "", "propensity": ""},
            {**event(10), "placement": "", "propensity": 0},
        ],
    )
    whole = gzip.compress(b"".join(landing.json_line(event(n)).encode() + b"\n" for n in range(100, 2000)))
    (events / "c.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (events / "d.jsonl").write_bytes(b"")
    landing.write_jsonl(
        folder / "catalogue" / "items.jsonl",
        [
            {"item_id": "i1", "title": "One"},
            {"item_id": "i1", "title": "Again"},
            {"item_id": "i2", "price": -1},
            {"title": "No"},
        ],
    )
    landing.write_lines(folder / "profiles" / "p.csv", ["user_id,age", "u1,30", "u1,31", ",40"])
    (folder / landing.MANIFEST).write_text(json.dumps({"files": ["events/a.jsonl", "events/z.jsonl"]}))


def ingest(settings: Settings, *, force: bool = False) -> tuple[int, dict]:
    code = Job("ingest_events", DAY, settings, force=force).execute(ingest_events.run, Console(quiet=True))
    return code, last_run(settings, DAY, "ingest_events")


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, dict]:
    folder = tmp_path_factory.mktemp("ingest")
    write_faulty_day(folder / "logs")
    settings = Settings(
        home=folder / "home", input=f"logs:{folder / 'logs'}", ingest={"max_line_bytes": 10_000, "max_raw_text": 200}
    )
    code, report = ingest(settings)
    assert code == 0, report
    return settings, report


@pytest.mark.spark
def test_rows_in_are_rows_accepted_and_rows_rejected(night: tuple[Settings, dict]) -> None:
    settings, report = night
    lake, facts = Lake(settings.lake_root), report["facts"]
    accepted = sum(lake.count(table) for table in ("events", "items", "users"))
    assert facts["rows_accepted"] == accepted
    rejected = lake.read("events_rejected")["line"].to_pylist()
    assert facts["rows_rejected"] == sum(line > 0 for line in rejected)
    assert facts["rows_in"] == facts["rows_accepted"] + facts["rows_rejected"]
    truncated = lake.count("events") - 3
    assert 100 < truncated < 1900
    # Lines of a.jsonl, rows of b.csv, what was decoded of c; that it breaks off, d is empty and z is missing are no
    # rows, and are told as well.
    assert facts["rows_in"] == 12 + 4 + truncated + 4 + 3
    assert sum(facts["rejected_by_reason"].values()) == len(rejected) == facts["rows_rejected"] + 3


@pytest.mark.spark
def test_every_file_is_accounted_for(night: tuple[Settings, dict]) -> None:
    files = {row["path"]: row for row in Lake(night[0].lake_root).read("ingest_files").to_pylist()}
    told = {path: (row["ended"], row["format"], row["compression"]) for path, row in files.items()}
    assert told == {
        "events/a.jsonl": ("complete", "jsonl", None),
        "events/b.csv": ("complete", "csv", None),
        "events/c.jsonl.gz": ("broken_off", "jsonl", "gzip"),
        "events/d.jsonl": ("complete", "jsonl", None),
        "events/z.jsonl": ("missing", None, None),
        "catalogue/items.jsonl": ("complete", "jsonl", None),
        "profiles/p.csv": ("complete", "csv", None),
    }
    for row in files.values():
        assert row["rows_seen"] == row["rows_used"] == row["rows_accepted"] + row["rows_rejected"]
        assert row["bytes_consumed"] == (0 if row["ended"] == "broken_off" else row["bytes"])
    assert [files["events/a.jsonl"][name] for name in ("rows_seen", "rows_accepted", "rows_rejected")] == [12, 1, 11]


@pytest.mark.spark
def test_every_bad_row_lands_with_reason_file_line_and_text(night: tuple[Settings, dict]) -> None:
    rejected = Lake(night[0].lake_root).read("events_rejected").to_pylist()
    found = {(row["file"], row["line"]): row["reason"] for row in rejected}
    assert found == {
        ("events/a.jsonl", 2): "invalid_json",
        ("events/a.jsonl", 3): "invalid_value",
        ("events/a.jsonl", 4): "unknown_item",
        ("events/a.jsonl", 5): "other_day",
        ("events/a.jsonl", 6): "future_time",
        ("events/a.jsonl", 7): "duplicate_event_id",
        ("events/a.jsonl", 8): "wrong_type",
        ("events/a.jsonl", 9): "invalid_encoding",
        ("events/a.jsonl", 10): "too_long",
        ("events/a.jsonl", 11): "unknown_event_type",
        ("events/a.jsonl", 12): "missing_field",
        ("events/b.csv", 4): "duplicate_event_id",
        ("events/b.csv", 5): "invalid_value",
        ("events/c.jsonl.gz", 0): "truncated_file",
        ("events/d.jsonl", 0): "empty_file",
        ("events/z.jsonl", 0): "missing_file",
        ("catalogue/items.jsonl", 2): "duplicate_key",
        ("catalogue/items.jsonl", 3): "invalid_value",
        ("catalogue/items.jsonl", 4): "missing_field",
        ("profiles/p.csv", 3): "duplicate_key",
        ("profiles/p.csv", 4): "missing_field",
    }
    by_place = {(row["file"], row["line"]): row for row in rejected}
    assert by_place["events/a.jsonl", 2]["raw_text"] == "{broken"
    assert "50,016 bytes" in by_place["events/a.jsonl", 10]["raw_text"]
    assert by_place["events/a.jsonl", 7]["detail"] == "column event_id: 'e1' was seen before, in events/a.jsonl line 1"
    assert by_place["events/a.jsonl", 4]["detail"] == "column item_id: 'nowhere' is not in the catalogue of the day"
    detail = "column propensity: 0.0; valid is a number above 0 and at most 1"
    assert by_place["events/b.csv", 5]["detail"] == detail
    assert by_place["profiles/p.csv", 3]["record"] == "user"


@pytest.mark.spark
def test_the_first_row_by_file_and_line_stays(night: tuple[Settings, dict]) -> None:
    lake = Lake(night[0].lake_root)
    events = {row["event_id"]: row for row in lake.read("events").to_pylist()}
    assert events["e1"]["user_id"] == "u1"
    assert events["e3"]["item_id"] == "i1"
    assert events["e9"]["placement"] == "home"
    assert [events[event]["propensity"] for event in ("e1", "e3", "e9")] == [None, None, 0.25]
    assert lake.read("items")["title"].to_pylist() == ["One"]
    assert lake.read("users")["profile"].to_pylist() == ['{"age":"30"}']


@pytest.mark.spark
def test_a_rerun_does_nothing_and_a_forced_one_gives_the_same_rows(night: tuple[Settings, dict]) -> None:
    settings, report = night
    lake = Lake(settings.lake_root)
    tables = ("events", "events_rejected", "ingest_files", "items", "users")
    before = {table: (lake.version(table), lake.read(table)) for table in tables}
    code, again = ingest(settings)
    assert (code, again["state"], again["facts"]) == (0, "skipped", report["facts"])
    assert {table: lake.version(table) for table in tables} == {table: before[table][0] for table in tables}
    code, forced = ingest(settings, force=True)
    assert (code, forced["state"], forced["facts"]) == (0, "finished", report["facts"])
    assert all(lake.read(table).equals(before[table][1]) for table in tables)


def test_a_day_without_events_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "logs").mkdir()
    settings = Settings(home=tmp_path / "home", input=f"logs:{tmp_path / 'logs'}")
    code, report = ingest(settings)
    assert (code, report["state"]) == (InputError.exit_code, "failed")
    message = capsys.readouterr().err.strip()
    assert f"day={DAY}/events" in message
    assert "expected layout: <landing>/day=YYYY-MM-DD/" in message
    assert "\n" not in message


@pytest.mark.spark
def test_a_landing_of_which_half_was_lost_without_a_word_stops_the_night(tmp_path: Path) -> None:
    """1,800 genuine events, of which 1,000 once came in, 100 of them wrong, while 85 checks passed."""
    rows = [event(number) for number in range(1800)]

    def text(part: slice) -> bytes:
        return b"".join(landing.json_line(row).encode() + b"\n" for row in rows[part])

    folder = landing.day_folder(tmp_path / "logs", DAY)
    inside = folder / "events"
    (inside / "_temporary" / "0").mkdir(parents=True)
    (inside / "part-0.jsonl").write_bytes(text(slice(0, 600)))
    (inside / "part-1.json").write_bytes(text(slice(600, 900)))
    second = bytearray(bz2.compress(text(slice(1100, 1300))))
    second[:4] = b"XXXX"
    (inside / "part-2.jsonl.bz2").write_bytes(bz2.compress(text(slice(900, 1100))) + bytes(second))
    twice = [{**row, "x": "i2"} for row in rows[1300:1400]]
    landing.write_csv(inside / "dup.csv", twice)
    (inside / "dup.csv").write_text((inside / "dup.csv").read_text().replace(",x\n", ",item_id\n"))
    table = pa.Table.from_pylist(rows[1400:1600])
    far = pa.array([2**62] * 200, pa.int64()).cast(pa.timestamp("us"), safe=False)
    pq.write_table(table.append_column("spare", far), inside / "far.parquet")
    (folder / "hold").mkdir()
    (folder / "hold" / "p.jsonl").write_bytes(text(slice(1600, 1800)))
    (inside / "eu").symlink_to(folder / "hold")
    (inside / "_temporary" / "0" / "part-9.jsonl").write_bytes(text(slice(0, 100)).replace(b'"e', b'"t'))
    (inside / "page.jsonl.gz").write_bytes(gzip.compress(b"<html>\n\n<body>503 Service Unavailable</body>\n</html>\n"))
    landing.write_jsonl(folder / "catalogue" / "c.jsonl", [{"item_id": "i1"}, {"item_id": "i2"}])

    settings = Settings(home=tmp_path / "home", input=f"logs:{tmp_path / 'logs'}")
    code, report = ingest(settings)
    assert code == 0, report
    lake = Lake(settings.lake_root)
    events = lake.read("events")
    assert set(events["event_id"].to_pylist()) == {f"e{n}" for n in [*range(1100), *range(1400, 1800)]}
    assert set(events["item_id"].to_pylist()) == {"i1"}
    files = {row["path"]: row for row in lake.read("ingest_files").to_pylist()}
    assert {path: row["ended"] for path, row in files.items() if row["ended"] != "complete"} == {
        "events/_temporary": "left_out",
        "events/dup.csv": "unreadable",
        "events/page.jsonl.gz": "unreadable",
        "events/part-2.jsonl.bz2": "broken_off",
    }
    assert files["events/dup.csv"]["rows_unread"] == 100
    gate = check_stage(settings, "ingest_events", DAY)
    assert gate.message is not None
    assert "check 'files read to their end': 3 of 9 files, e.g. " in gate.message
    assert (files["events/page.jsonl.gz"]["detail"], files["events/page.jsonl.gz"]["rows_rejected"]) == (
        "no line of it is a row",
        3,
    )
    assert "dup.csv: the header names item_id more than once" in gate.message or "part-2.jsonl.bz2" in gate.message

    # Mended, it passes: the damaged files are written again.
    (inside / "part-2.jsonl.bz2").write_bytes(bz2.compress(text(slice(900, 1300))))
    landing.write_csv(inside / "dup.csv", rows[1300:1400])
    (inside / "page.jsonl.gz").unlink()
    assert ingest(settings)[0] == 0
    assert lake.count("events") == 1800
    assert check_stage(settings, "ingest_events", DAY).message is None


@pytest.mark.spark
def test_many_small_files_are_read_many_a_task(tmp_path: Path) -> None:
    folder = landing.day_folder(tmp_path / "logs", DAY)
    for number in range(300):
        landing.write_jsonl(folder / "events" / f"{number:03d}.jsonl", [event(number)])
    landing.write_jsonl(folder / "catalogue" / "c.jsonl", [{"item_id": "i1"}])
    settings = Settings(home=tmp_path / "home", input=f"logs:{tmp_path / 'logs'}")
    assert ingest(settings)[0] == 0
    assert Lake(settings.lake_root).count("ingest_files") == 301
    assert len(in_tasks(landing.raw_files(tmp_path / "logs", DAY), 2)) <= 4
    (empty := tmp_path / "empty.jsonl").touch()
    nothing = landing.RawFile(record="event", name="events/empty.jsonl", path=empty)
    assert in_tasks([nothing, nothing], 2) == [[nothing, nothing]], "files without a byte are read too"


@pytest.mark.spark
def test_what_only_the_whole_day_shows_is_settled_over_all_formats(tmp_path: Path) -> None:
    folder = landing.day_folder(tmp_path / "logs", DAY)
    landing.write_lines(folder / "catalogue" / "c.json", [json.dumps([{"item_id": f"i{n}"} for n in range(5)])])
    draws = random.Random(0)
    rows = {
        name: [
            event(draws.randrange(400), item_id=f"i{draws.randrange(6)}", user_id=f"{name} {line}")
            for line in range(1, 301)
        ]
        for name in ("a.parquet", "b.jsonl", "c.csv", "d.json")
    }
    (folder / "events").mkdir()
    times = [{**row, "event_time": datetime(2026, 1, 5, 10, tzinfo=UTC)} for row in rows["a.parquet"]]
    pq.write_table(pa.Table.from_pylist(times), folder / "events" / "a.parquet")
    landing.write_jsonl(folder / "events" / "b.jsonl", rows["b.jsonl"])
    landing.write_csv(folder / "events" / "c.csv", rows["c.csv"])
    landing.write_lines(folder / "events" / "d.json", [json.dumps(rows["d.json"])])  # all on one line
    seen: dict[object, object] = {}
    reasons: Counter[str] = Counter()
    for row in (row for of_file in rows.values() for row in of_file):
        known = row["item_id"] != "i5"
        reasons["duplicate_event_id" if known else "unknown_item"] += not known or row["event_id"] in seen
        if known:
            seen.setdefault(row["event_id"], row["user_id"])

    settings = Settings(home=tmp_path / "home", input=f"logs:{tmp_path / 'logs'}")
    # Of a process of this machine that is gone, and of another machine.
    staged = tmp_path / "home" / "lake" / STAGED
    for name in (f"{socket.gethostname()}-999999999", "elsewhere-1"):
        landing.write_lines(staged / name / "part-0.parquet", ["unfinished"])
    code, report = ingest(settings)
    assert (code, report["facts"]["rejected_by_reason"]) == (0, dict(reasons))
    lake = Lake(settings.lake_root)
    found = lake.read("events", columns=["event_id", "user_id"]).to_pylist()
    assert {row["event_id"]: row["user_id"] for row in found} == seen
    assert len(found) == len(seen)
    kept = lake.read("events_rejected", columns=["file", "raw_text"]).to_pylist()
    assert all(row["raw_text"] for row in kept if not row["file"].endswith(".parquet"))
    assert [folder.name for folder in staged.iterdir()] == ["elsewhere-1"], "what was staged here is gone"
    os.utime(staged / "elsewhere-1" / "part-0.parquet", (0, 0))
    maintain_all(lake, timedelta(days=30))
    assert not any(staged.iterdir())
