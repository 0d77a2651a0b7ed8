"""Gates: what each check finds, what stops a night, and what is not checked twice."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_night import DAY, damage, rows_of, run_night, table_of

from sgrec_core.errors import ContractError, GateError
from sgrec_core.lake import Lake, load_contract, table_names
from sgrec_core.quality.balance import rejected_rows, rejected_shares
from sgrec_core.quality.gates import RAW_LOGS, check_stage, failure_in_words, rows_of_day, stop_on_critical
from sgrec_core.quality.table_docs import TABLE_DOCS, table_docs
from sgrec_core.quality.validation import Check, TableResult, result_path, validate
from sgrec_core.settings import PROJECT_ROOT, Settings

Rows = list[dict[str, Any]]


def change(row: int, **values: Any) -> Callable[[Rows], None]:
    """A fault: put ``values`` into one row."""
    return lambda rows: rows[row].update(values)


def the_failures(table: str, data: pa.Table) -> list[Check]:
    result, _ = validate(load_contract(table), data, day=DAY)
    return result.failures


@pytest.mark.parametrize("table", table_names())
def test_valid_rows_pass_every_check(table: str) -> None:
    result, _ = validate(load_contract(table), table_of(table), day=DAY)
    assert result.failures == []
    assert {check.column for check in result.checks if check.name == "type"} == {
        column.name for column in load_contract(table).columns
    }


@pytest.mark.parametrize(
    ("table", "fault", "check", "column", "count"),
    [
        ("events", change(3, user_id=None), "not null", "user_id", 1),
        ("events", change(3, price=-0.01), "numbers", "price", 1),
        ("events", change(3, price=math.nan), "numbers", "price", 1),
        ("events", change(3, bid=math.inf), "numbers", "bid", 1),
        ("events", change(3, propensity=0.0), "numbers", "propensity", 1),
        ("events", change(3, propensity=1.5), "numbers", "propensity", 1),
        ("events", change(3, position=-1), "numbers", "position", 1),
        ("events", change(3, event_type="view"), "allowed values", "event_type", 1),
        ("events", change(3, item_id="x" * 257), "length", "item_id", 1),
        ("events", change(3, event_id="e4"), "unique", "event_id", 2),
        ("candidates", change(3, log_probs=[-1.0, 0.5, -1.0]), "numbers", "log_probs", 1),
        ("candidates", change(3, log_probs=[-1.0, None, math.nan]), "numbers", "log_probs", 1),
        ("candidates", change(3, item_id="i2"), "unique", "decision_id, item_id", 2),
        ("item_codes", change(3, codes=[0, 0, 0]), "unique", "codes", 2),
        ("aspect_scores", change(3, scores=[2.0]), "numbers", "scores", 1),
        ("user_weights", change(3, weights=[-0.5, 0.5, 1.0]), "numbers", "weights", 1),
        ("rewards", change(3, gate=1.5), "numbers", "gate", 1),
        ("rewards", change(3, advantage=math.nan), "numbers", "advantage", 1),
    ],
)
def test_a_fault_is_found_by_one_check_that_names_column_and_rows(
    table: str, fault: Callable[[Rows], None], check: str, column: str, count: int
) -> None:
    rows = rows_of(table)
    fault(rows)
    [failure] = the_failures(table, table_of(table, rows))
    assert (failure.name, failure.column, failure.unexpected_count) == (check, column, count)
    assert failure.severity == load_contract(table).severity
    assert failure.unexpected_share == pytest.approx(count / len(rows))
    assert len(failure.sample_rows) == count
    # Whoever reads a sample row can find it again: it has the key, and the column that is wrong.
    assert {*load_contract(table).key, *column.split(", ")} <= failure.sample_rows[0].keys()


def test_a_wrong_type_is_one_finding_though_other_checks_cannot_run_on_it() -> None:
    data = table_of("events")
    data = data.set_column(data.column_names.index("price"), "price", data["price"].cast(pa.string()))
    [failure] = the_failures("events", data)
    assert (failure.name, failure.column, failure.observed, failure.expected) == ("type", "price", "string", "float64")


def test_int32_and_int64_are_different_types() -> None:
    data = table_of("events")
    data = data.set_column(data.column_names.index("position"), "position", data["position"].cast(pa.int64()))
    [failure] = the_failures("events", data)
    assert (failure.name, failure.column, failure.observed) == ("type", "position", "int64")


def test_missing_and_unknown_columns_are_one_finding() -> None:
    data = table_of("events").drop_columns(["price"]).append_column("prize", pa.nulls(30, pa.float64()))
    [failure] = the_failures("events", data)
    assert failure.name == "columns"
    assert failure.observed == "missing price; unknown prize"


def test_only_contracts_that_say_so_may_be_empty() -> None:
    for table in table_names():
        failures = the_failures(table, load_contract(table).arrow_schema.empty_table())
        expected = [] if load_contract(table).may_be_empty else ["not empty"]
        assert [failure.name for failure in failures] == expected, table


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([0.0, 0.25, 1.0, -0.1, 1.5, math.nan, math.inf, None]), max_size=3),
        min_size=1,
        max_size=6,
    )
)
def test_numbers_in_lists_are_judged_as_the_contract_judges_them(lists: list[list[float | None]]) -> None:
    rows = [{**rows_of("user_weights")[0], "state_id": f"s{i}", "weights": weights} for i, weights in enumerate(lists)]
    data, contract = table_of("user_weights", rows), load_contract("user_weights")
    failures = the_failures("user_weights", data)
    try:
        contract.check(data)
    except ContractError:
        assert [(failure.name, failure.column) for failure in failures] == [("numbers", "weights")]
    else:
        assert failures == []


def test_results_survive_a_round_trip_through_json(tmp_path: Path) -> None:
    rows = rows_of("events")
    rows[0]["price"] = math.nan
    rows[1]["user_id"] = None
    result, _ = validate(load_contract("events"), table_of("events", rows), day=DAY, identity="x")
    result.write(tmp_path / "events.json")
    assert TableResult.read(tmp_path / "events.json") == result
    assert result.runbook.count(DAY) == 1


def test_a_warning_is_reported_and_does_not_stop(home: Path) -> None:
    def unknown_reason(settings: Settings, stage: str) -> None:
        if stage == "ingest_events":
            rows = rows_of("events_rejected")
            rows[0]["reason"] = "mood"
            damage(settings, "events_rejected", rows)

    run_night(Settings(), until="ingest_events", before_gate=unknown_reason)
    gate = check_stage(Settings(), "ingest_events", DAY)
    stop_on_critical(gate)
    rejected = next(result for result in gate.results if result.table == "events_rejected")
    assert [(check.severity, check.column) for check in rejected.failures] == [("warning", "reason")]
    assert rejected.success


def of_file(path: str, **values: Any) -> Callable[[Rows], None]:
    """A fault: put ``values`` into the row of one file."""
    return lambda rows: next(row for row in rows if row["path"] == path).update(values)


EVENTS = "events/part-0.jsonl"


@pytest.mark.parametrize(
    ("table", "fault", "check", "words"),
    [
        ("ingest_files", of_file(EVENTS, rows_seen=33), "nothing lost in a file", "part-0.jsonl"),
        ("ingest_files", of_file(EVENTS, rows_used=31, rows_rejected=1), "nothing lost in a file", "part-0.jsonl"),
        ("ingest_files", of_file("profiles/p.jsonl", rows_accepted=29), "nothing lost", "72 rows"),
        ("events_rejected", lambda rows: rows.pop(), "nothing lost in a file", "part-0.jsonl"),
        ("events_rejected", lambda rows: rows[0].update(file="events/b.jsonl"), "nothing lost in a file", "part-0"),
        ("users", lambda rows: rows.pop(), "nothing lost", "71 rows"),
        ("ingest_files", lambda rows: [row.update(rows_seen=0, rows_used=0) for row in rows], "rows in", "0 raw rows"),
        ("ingest_files", of_file(EVENTS, ended="broken_off", bytes_consumed=3199, detail="gzip data break off"),
         "files read to their end", "part-0.jsonl: gzip data break off"),
        ("ingest_files", of_file(EVENTS, ended="missing", detail="a link to what is not there"),
         "files read to their end", "a link to what is not there"),
        ("ingest_files", of_file(EVENTS, rows_unread=10, rows_seen=42, detail="no header"), "rejected share",
         "12 of 84 rows (14.29%), e.g. mostly no header (10 rows in events/part-0.jsonl)"),
        ("ingest_files", of_file(EVENTS, ended="unreadable", bytes=90_000), "rejected share", "rejected"),
        ("events_rejected", change(0, raw_text="{" * 2000 + "... [1,500 bytes in all]"), "rejected share",
         "20.76% of the bytes, mostly invalid_json (1,536 of the 3,200 bytes of events/part-0.jsonl)"),
    ],
)  # fmt: skip
def test_rows_and_files_must_balance(
    home: Path, table: str, fault: Callable[[Rows], None], check: str, words: str
) -> None:
    rows = rows_of(table)
    fault(rows)
    run_night(Settings(), until="ingest_events", before_gate=lambda s, _: damage(s, table, rows))
    gate = check_stage(Settings(), "ingest_events", DAY)
    balance = next(result for result in gate.results if result.table == RAW_LOGS)
    assert check in [failure.name for failure in balance.failures]
    found = next(failure for failure in balance.failures if failure.name == check)
    assert words in failure_in_words(balance, found)
    with pytest.raises(GateError, match="table raw_logs"):
        stop_on_critical(gate)


def shares(files: Rows, bad: Rows) -> dict[str, float]:
    """Rejected shares above the limit of files of 100 bytes a row, by check."""
    nothing = {"rows_accepted": 0, "rows_rejected": 0, "rows_unread": 0, "format": "jsonl", "compression": None,
               "detail": None}  # fmt: skip
    read = [
        {**nothing, "ended": "complete", "bytes": 100 * one["rows_used"], "bytes_consumed": 100 * one["rows_used"],
         "path": one["record"], **one}
        for one in files
    ]  # fmt: skip
    columns = ["record", "file", "reason", "rows", "length"]
    rejected = pd.DataFrame([{"file": one["record"], **one} for one in bad], columns=columns)
    checks = rejected_shares(pd.DataFrame(read), rejected, Settings().ingest)
    return {check.name: round(check.unexpected_share, 3) for check in checks if not check.success}


MANY = {"record": "event", "rows_used": 3000, "rows_accepted": 3000}


@pytest.mark.parametrize(
    ("of_file", "bad", "share"),
    [
        ({}, {"reason": "wrong_type"}, 0.2),
        ({}, {"reason": "duplicate_key"}, None),
        ({"rows_unread": 20, "rows_rejected": 0}, {"rows": 0}, 0.2),
        ({"rows_rejected": 1}, {"rows": 1, "length": 2000}, 0.2),
        ({"rows_rejected": 1, "compression": "gzip"}, {"rows": 1, "length": 40_000}, 0.2),
        ({"rows_rejected": 1, "compression": "gzip"}, {"rows": 1, "length": 2000}, None),
        ({"ended": "broken_off", "bytes_consumed": 5000, "rows_rejected": 0}, {"rows": 0, "length": 0}, 0.5),
        # A mapping makes 100 rows of each line.
        ({"rows_accepted": 9900, "rows_rejected": 100}, {"rows": 100, "length": 10_000}, None),
    ],
)
@pytest.mark.parametrize("kind", ["item", "user"])
def test_a_small_folder_that_is_lost_is_not_lost_among_many_events(
    kind: str, of_file: dict[str, object], bad: dict[str, object], share: float | None
) -> None:
    lost = {"rows_used": 100, "rows_accepted": 80, "rows_rejected": 20, **of_file}
    reject = {"record": kind, "reason": "wrong_type", "rows": 20, "length": 200, **bad}
    name = {"item": "rejected share of items", "user": "rejected share of users"}[kind]
    assert shares([MANY, {"record": kind, **lost}], [reject]) == ({} if share is None else {name: share})


def test_a_day_without_a_reject_has_no_rejected_share(tmp_path: Path) -> None:
    none = rejected_rows(Lake(str(tmp_path)), DAY)
    assert len(none) == 0
    file = {"rows_rejected": 0, "rows_unread": 0, "format": "jsonl", "compression": None, "ended": "complete",
            "bytes": 9, "bytes_consumed": 9, "path": "a", "detail": None}  # fmt: skip
    read = pd.DataFrame([{**MANY, **file}])
    checks = list(rejected_shares(read, none, Settings().ingest))
    assert [check.success for check in checks] == [True] * 3
    assert {check.unexpected_share for check in checks} == {0.0}


def test_a_row_that_is_half_of_the_bytes_is_half_of_what_is_lost() -> None:
    half = {"record": "event", "rows_used": 3001, "rows_accepted": 3000, "rows_rejected": 1, "bytes": 600_000,
            "bytes_consumed": 600_000}  # fmt: skip
    row = {"record": "event", "reason": "invalid_json", "rows": 1, "length": 300_000}
    assert shares([half], [row]) == {"rejected share": 0.5}
    assert shares([half], [{**row, "reason": "anonymous"}]) == {}, "has a check of its own"
    parquet = {**half, "format": "parquet", "rows_accepted": 2000, "rows_rejected": 1000, "rows_used": 3000}
    assert shares([parquet], [{**row, "rows": 1000, "length": 10}]) == {"rejected share": 0.333}


def test_events_without_a_user_stay_outside_of_the_share_until_they_are_too_many(home: Path) -> None:
    rejected = rows_of("events_rejected")
    rejected += [{**rejected[0], "line": 20 + n, "reason": "anonymous"} for n in range(40)]
    files = rows_of("ingest_files")
    of_file(EVENTS, rows_seen=72, rows_used=72, rows_rejected=42)(files)

    def many(settings: Settings, _: str) -> None:
        damage(settings, "events_rejected", rejected)
        damage(settings, "ingest_files", files)

    run_night(Settings(), until="ingest_events", before_gate=many)
    failed = check_stage(Settings(), "ingest_events", DAY)
    assert failed.message is not None
    assert (
        "check 'events without a user': 40 of 114 rows (55.56%), e.g. 40 of 72 events have no user_id" in failed.message
    )
    allowed = Settings(ingest={"max_anonymous_share": 0.6})
    assert check_stage(allowed, "ingest_events", DAY).message is None


def test_a_share_of_unread_bytes_can_be_allowed(home: Path) -> None:
    files = rows_of("ingest_files")
    of_file(EVENTS, ended="broken_off", bytes_consumed=3100, detail="gzip data break off")(files)
    run_night(Settings(), until="ingest_events", before_gate=lambda s, _: damage(s, "ingest_files", files))
    assert check_stage(Settings(), "ingest_events", DAY).state == "failed"
    assert check_stage(Settings(ingest={"max_unread_share": 0.02}), "ingest_events", DAY).message is None
    assert check_stage(Settings(ingest={"max_unread_share": 0.01}), "ingest_events", DAY).state == "failed"


def test_what_passed_is_not_validated_again_until_rows_change(home: Path) -> None:
    run_night(Settings(), until="ingest_events")
    path = result_path(Settings().reports(DAY), "events")
    written = path.stat().st_mtime_ns
    assert check_stage(Settings(), "ingest_events", DAY).state == "skipped"
    assert path.stat().st_mtime_ns == written
    assert check_stage(Settings(), "ingest_events", DAY, force=True).state == "finished"

    Lake(Settings().lake_root).publish("events", table_of("events"), partition={"day": DAY}, fingerprint="1" * 32)
    written = path.stat().st_mtime_ns
    assert check_stage(Settings(), "ingest_events", DAY).state == "finished"
    assert path.stat().st_mtime_ns > written


def test_what_failed_is_validated_again(home: Path) -> None:
    rows = rows_of("items")
    rows[2]["item_hash"] = None
    run_night(Settings(), until="ingest_events", before_gate=lambda s, _: damage(s, "items", rows))
    for _ in range(2):
        gate = check_stage(Settings(), "ingest_events", DAY)
        assert gate.state == "failed"
        assert gate.message is not None
        assert "table items, column item_hash, check 'not null': 1 of 12 rows" in gate.message


def test_the_gate_reads_the_rows_of_the_day(home: Path) -> None:
    run_night(Settings(), until="score_aspects")
    lake = Lake(Settings().lake_root)
    of_another_day = [{**row, "day": date(2026, 1, 6)} for row in rows_of("aspect_scores")[:1]]
    lake.upsert("aspect_scores", table_of("aspect_scores", of_another_day))
    assert rows_of_day(lake, "aspect_scores", DAY).num_rows == 120
    assert rows_of_day(lake, "item_codes", DAY).num_rows == 12
    assert rows_of_day(lake, "candidates", "2026-01-06").num_rows == 0


def gate_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.check_quality", *arguments],
        cwd=PROJECT_ROOT,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_passes_with_exit_code_0(home: Path) -> None:
    run_night(Settings(), until="build_states")
    done = gate_command("--day", DAY, "--stage", "build_states", "--force")
    assert done.returncode == 0, done.stderr
    assert "user_states" in done.stdout
    assert "check_build_states 2026-01-05: finished" in done.stdout
    events = [json.loads(line) for line in (Settings().reports(DAY) / "progress.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events if event["stage"] == "check_build_states"] == ["started", "finished"]


def test_the_command_stops_the_night_with_exit_code_3_and_one_line(home: Path) -> None:
    rows = rows_of("user_states")
    rows[3]["split"] = "Train"
    rows[4]["position"] = -7
    run_night(Settings(), until="build_states")
    damage(Settings(), "user_states", rows)
    done = gate_command("--day", DAY, "--stage", "build_states")
    assert done.returncode == 3
    [line] = done.stderr.strip().splitlines()
    assert line == (
        "check_build_states 2026-01-05: table user_states, column split, check 'allowed values': 1 of 30 rows (3.33%), "
        "e.g. split='Train'; valid is one of train, validation; owner recommendation; 1 more critical checks failed"
    )


def test_too_many_rejects_stop_the_night_and_name_the_worst_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_night(Settings(), until="ingest_events")
    monkeypatch.setenv("SGREC_INGEST__MAX_REJECTED_SHARE", "0.01")
    done = gate_command("--day", DAY, "--stage", "ingest_events")
    assert done.returncode == 3
    [line] = done.stderr.strip().splitlines()
    assert "check 'rejected share': 2 of 74 rows (2.70%)" in line
    assert "events/part-0.jsonl" in line
    assert "at most 1.00% rejected" in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--day", "tomorrow", "--stage", "build_states"], "YYYY-MM-DD"),
        (["--day", DAY, "--stage", "train_generator"], "valid are ingest_events"),
        (["--day", DAY, "--stage", "ingest_events"], "run `python -m jobs.ingest_events --day 2026-01-05` first"),
    ],
)
def test_the_command_says_what_it_needs(home: Path, arguments: list[str], says: str) -> None:
    done = gate_command(*arguments)
    assert done.returncode in (2, 3)
    [line] = done.stderr.strip().splitlines()
    assert says in line


def test_the_table_documentation_is_what_the_contracts_say() -> None:
    assert TABLE_DOCS.read_text(encoding="utf-8") == table_docs(), "run `python -m sgrec_core.quality.table_docs`"
