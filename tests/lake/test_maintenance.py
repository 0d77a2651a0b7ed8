"""Upkeep: tables get small to open, nothing that was published is lost, and nights may go on beside it."""

import threading
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from judged_night import DAY, publish_night
from small_night import rows_of, table_of

from jobs import score_aspects
from sgrec_core.errors import ContractError
from sgrec_core.judge.calls.ledger import has_judged_nights, judged_with, paid_before
from sgrec_core.lake import Lake
from sgrec_core.lake.maintenance import maintain, maintain_all
from sgrec_core.runtime.job import Job
from sgrec_core.settings import JudgeSettings, Settings

AT_ONCE = timedelta(0)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def publish_users(lake: Lake, day: str, fingerprint: str) -> None:
    lake.publish("users", table_of("users", rows_of("users", day)), partition={"day": day}, fingerprint=fingerprint)


def files(lake: Lake, table: str) -> list[Path]:
    return list(Path(lake.uri(table)).rglob("*.parquet"))


def forget_history(lake: Lake, table: str) -> None:
    """A checkpoint, and all of the log before it removed, as Delta does it in the course of time."""
    delta = lake.open(table)
    assert delta is not None
    delta.alter.set_table_properties({"delta.logRetentionDuration": "interval 0 days"})
    delta = lake.open(table)
    assert delta is not None
    delta.create_checkpoint()
    delta.cleanup_metadata()
    assert not list((Path(lake.uri(table)) / "_delta_log").glob("*00000.json")), "the first commit is gone"


def test_what_was_replaced_goes_and_rows_constraints_and_fingerprints_stay(lake: Lake) -> None:
    for number in range(3):
        publish_users(lake, DAY, f"{number:032x}")
    publish_users(lake, "2026-01-06", "ff" * 16)
    rows, fingerprint = lake.read("users"), lake.fingerprint("users", {"day": DAY})
    killed = Path(lake.uri("users")) / "day=2026-01-06" / "part-of-a-killed-job.parquet"
    killed.write_bytes(b"")
    done = maintain(lake, "users", AT_ONCE)
    assert done is not None
    assert (done.files, done.deleted, done.was_busy) == (2, 3, False)
    assert not killed.exists()
    forget_history(lake, "users")
    assert lake.read("users").equals(rows)
    assert lake.fingerprint("users", {"day": DAY}) == fingerprint
    assert lake.fingerprint("users", {"day": "2026-01-06"}) is not None


def test_files_of_one_partition_become_one_and_the_table_still_refuses_bad_rows(lake: Lake) -> None:
    for row in rows_of("aspect_scores")[:5]:
        lake.append("aspect_scores", table_of("aspect_scores", [row]))
    rows = lake.read("aspect_scores")
    done = maintain(lake, "aspect_scores", AT_ONCE)
    assert done is not None
    assert (done.files_before, done.files, done.deleted) == (5, 1, 5)
    assert lake.read("aspect_scores").equals(rows)
    entry = table_of("judge_ledger")
    lake.append("judge_ledger", entry)
    maintain(lake, "judge_ledger", AT_ONCE)
    with pytest.raises(ContractError, match="column asked"):
        lake.append("judge_ledger", entry.set_column(7, "asked", pa.array([-1])))


def test_a_second_time_changes_nothing(lake: Lake) -> None:
    publish_users(lake, DAY, "aa" * 16)
    publish_users(lake, DAY, "bb" * 16)
    maintain(lake, "users", AT_ONCE)
    version, before = lake.version("users"), files(lake, "users")
    maintain(lake, "users", AT_ONCE)
    assert (lake.version("users"), files(lake, "users")) == (version, before)


def test_old_versions_can_be_read_as_long_as_they_are_kept(lake: Lake) -> None:
    publish_users(lake, DAY, "aa" * 16)
    version = lake.version("users")
    publish_users(lake, DAY, "bb" * 16)
    maintain(lake, "users", timedelta(days=1))
    assert lake.read("users", version=version).num_rows == 30
    maintain(lake, "users", AT_ONCE)
    with pytest.raises(ContractError, match=f"table users: files of version {version} are gone"):
        lake.read("users", version=version)


def test_what_the_judge_has_cost_outlives_upkeep_and_the_history_of_the_tables(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, judge=JudgeSettings(shard_size=8))
    lake = publish_night(settings)
    first = Job("score_aspects", DAY, settings)
    score_aspects.run(first)
    version, paid = first.facts["judge_version"], first.facts["judge_paid"]
    for table in ("aspect_scores", "judge_ledger"):
        maintain(lake, table, AT_ONCE)
        forget_history(lake, table)
    assert paid_before(lake, DAY, version) == paid
    assert judged_with(lake, DAY) == version
    assert has_judged_nights(lake, version)
    again = Job("score_aspects", DAY, settings)
    score_aspects.run(again)
    assert (again.facts["judge_paid"], again.facts["judge_cached"]) == (0, paid)


def test_nights_publish_while_the_tables_are_maintained(lake: Lake) -> None:
    """Publications replace what is being compacted; neither may make the other fail."""
    publish_users(lake, DAY, "00" * 16)
    lake.append("aspect_scores", table_of("aspect_scores"))
    ended, problems = threading.Event(), []

    def upkeep() -> None:
        while not ended.is_set():
            try:
                maintain_all(lake, timedelta(days=1))
            except Exception as error:
                problems.append(error)

    thread = threading.Thread(target=upkeep)
    thread.start()
    try:
        for number in range(1, 16):
            publish_users(lake, DAY, f"{number:032x}")
            rows = [{**row, "item_id": f"new-{number}"} for row in rows_of("aspect_scores")[:1]]
            lake.append("aspect_scores", table_of("aspect_scores", rows))
            lake.upsert("aspect_scores", table_of("aspect_scores", rows))
    finally:
        ended.set()
        thread.join()
    assert not problems
    assert lake.count("users") == 30
    assert lake.count("aspect_scores") == 120 + 15
