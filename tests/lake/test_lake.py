"""Publishing is atomic, checked and idempotent; the assertions are on rows and on the Delta log itself."""

import json
import multiprocessing
import os
import signal
import time
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, Schema, write_deltalake
from deltalake.exceptions import DeltaError
from old_tables import promotions_of_before
from small_night import rows_of

from sgrec_core.errors import ContractError
from sgrec_core.lake import Lake, load_contract

DAY = {"day": "2026-01-05"}


def users(*names: str) -> pa.Table:
    return pa.table(
        {"user_id": list(names), "profile": ["{}"] * len(names)},
        schema=pa.schema([("user_id", pa.string()), ("profile", pa.string())]),
    )


def commits(lake: Lake, table: str) -> list[list[dict]]:
    folder = Path(lake.uri(table)) / "_delta_log"
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted(folder.glob("*.json"))]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def test_a_table_that_was_never_published_is_empty_and_has_its_schema(lake: Lake) -> None:
    rows = lake.read("users", where=DAY)
    assert rows.num_rows == 0
    assert rows.column_names == ["day", "user_id", "profile"]
    assert lake.version("users") is None
    assert lake.fingerprint("users", DAY) is None


def test_rows_come_back_in_the_order_of_the_key(lake: Lake) -> None:
    lake.publish("users", users("c", "a", "b"), partition=DAY, fingerprint="aa" * 8)
    assert lake.read("users")["user_id"].to_pylist() == ["a", "b", "c"]


def test_a_publication_replaces_its_partition_alone_and_in_one_commit(lake: Lake) -> None:
    lake.publish("users", users("a"), partition=DAY, fingerprint="aa" * 8)
    lake.publish("users", users("b"), partition={"day": "2026-01-06"}, fingerprint="bb" * 8)
    before = lake.version("users")
    lake.publish("users", users("c", "d"), partition=DAY, fingerprint="cc" * 8, metadata={"run_id": "r1"})
    assert lake.version("users") == before + 1
    assert lake.read("users", where={"day": ["2026-01-06"]})["user_id"].to_pylist() == ["b"]
    assert lake.read("users", where=DAY)["user_id"].to_pylist() == ["c", "d"]
    assert lake.read("users", where=DAY, version=before)["user_id"].to_pylist() == ["a"]
    actions = commits(lake, "users")[-1]
    transaction = next(action["txn"] for action in actions if "txn" in action)
    assert transaction["appId"] == "users/day=2026-01-05"
    info = next(action["commitInfo"] for action in actions if "commitInfo" in action)
    assert info["sgrec.fingerprint"] == "cc" * 8
    assert info["sgrec.run_id"] == "r1"


def test_an_empty_publication_empties_the_partition_and_is_remembered(lake: Lake) -> None:
    lake.publish("users", users("a"), partition=DAY, fingerprint="aa" * 8)
    lake.publish("users", users(), partition=DAY, fingerprint="ee" * 8)
    assert lake.count("users", where=DAY) == 0
    assert lake.fingerprint("users", DAY) == int("ee" * 8, 16) >> 1


def test_bad_rows_change_nothing(lake: Lake) -> None:
    lake.publish("users", users("a"), partition=DAY, fingerprint="aa" * 8)
    version = lake.version("users")
    with pytest.raises(ContractError, match="user_id occur more than once"):
        lake.publish("users", users("b", "b"), partition=DAY, fingerprint="bb" * 8)
    with pytest.raises(ContractError, match="rows outside the partition day=2026-01-05"):
        other = users("b").append_column("day", pa.array(["2026-01-07"]).cast(pa.date32()))
        lake.publish("users", other, partition=DAY, fingerprint="bb" * 8)
    assert lake.version("users") == version


def test_delta_itself_refuses_rows_that_break_a_constraint(lake: Lake) -> None:
    """A writer that goes round our code meets the CHECK constraints of the contract."""
    table = lake.create("evaluations")
    row = {
        "day": pa.array(["2026-01-05"]).cast(pa.date32()),
        "model": ["m"], "model_version": ["1"], "role": ["king"], "split": ["validation"], "metric": ["ndcg"],
        "cutoff": pa.array([10], pa.int32()), "bucket": ["all"], "value": [0.1],
        "lower": pa.array([None], pa.float64()), "upper": pa.array([None], pa.float64()), "users": [1],
    }  # fmt: skip
    with pytest.raises(Exception, match="role"):
        write_deltalake(table, pa.table(row), mode="append")


def decision(action: str, sequence: int) -> pa.Table:
    row = {
        "sequence": sequence, "day": date(2026, 1, 5), "action": action, "model": "m", "version": None,
        "fingerprint": None, "who": "w", "reason": "r", "decided_at": datetime(2026, 1, 5, tzinfo=UTC),
    }  # fmt: skip
    return pa.Table.from_pylist([row], schema=load_contract("promotions").arrow_schema)


@pytest.mark.parametrize(
    "before", [("promote",), ("promote", "rollback", "pin"), ("promote", "rollback", "pin", "release")]
)
def test_a_table_takes_in_what_its_contract_allows_by_now(lake: Lake, before: tuple[str, ...]) -> None:
    """In one commit; Delta words a constraint of few values otherwise than one of many."""
    delta = promotions_of_before(lake.uri("promotions"), *before)
    write_deltalake(delta, decision("promote", 1), mode="append")
    with pytest.raises(DeltaError, match="failed validation"):
        write_deltalake(delta, decision("hold", 2), mode="append")
    version = DeltaTable(lake.uri("promotions")).version()
    delta = lake.create("promotions")
    assert delta.version() == version + 1
    assert lake.create("promotions").version() == version + 1, "nothing to do"
    for action, sequence in (("crown", 2), ("hold", 0)):
        with pytest.raises(DeltaError, match="failed validation"):
            write_deltalake(delta, decision(action, sequence), mode="append")
    write_deltalake(delta, decision("hold", 2), mode="append")
    assert lake.read("promotions")["action"].to_pylist() == ["promote", "hold"]


def test_a_table_that_allows_more_than_this_contract_stays(lake: Lake) -> None:
    """A newer sgrec has written to it."""
    delta = promotions_of_before(lake.uri("promotions"), "promote", "rollback", "pin", "hold", "release", "crown")
    assert lake.create("promotions").version() == delta.version()


def scores(state: str, value: float | None) -> pa.Table:
    row = {
        "judge_version": "v", "day": date(2026, 1, 5), "state_id": state, "item_id": "i", "item_hash": "h",
        "aspects": ["s0"],
        "scores": None if value is None else [value], "failure": "timeout" if value is None else None,
    }  # fmt: skip
    return pa.Table.from_pylist([row], schema=load_contract("aspect_scores").arrow_schema)


def test_upsert_adds_new_keys_and_replaces_known_ones(lake: Lake) -> None:
    lake.upsert("aspect_scores", scores("s1", 0.5))
    lake.upsert("aspect_scores", scores("s2", None))
    lake.upsert("aspect_scores", scores("s2", 0.25))
    rows = lake.read("aspect_scores", columns=["state_id", "scores", "failure"]).to_pylist()
    assert rows == [
        {"state_id": "s1", "scores": [0.5], "failure": None},
        {"state_id": "s2", "scores": [0.25], "failure": None},
    ]


def test_appended_rows_are_checked_and_stand_beside_those_that_are_there(lake: Lake) -> None:
    lake.append("aspect_scores", scores("s1", 0.5), metadata={"writer": 1})
    version = lake.append("aspect_scores", scores("s2", None))
    assert lake.read("aspect_scores")["state_id"].to_pylist() == ["s1", "s2"]
    with pytest.raises(ContractError, match="column scores: 1 of 1 rows are not valid"):
        lake.append("aspect_scores", scores("s3", 2.0))
    with pytest.raises(ContractError, match="occur more than once"):
        lake.append("aspect_scores", pa.concat_tables([scores("s3", 0.5)] * 2))
    assert lake.append("aspect_scores", scores("s3", 0.5).slice(0, 0)) == version
    assert any(
        action.get("commitInfo", {}).get("sgrec.writer") == "1"
        for of in commits(lake, "aspect_scores")
        for action in of
    )


def test_rows_that_a_merge_wrote_can_be_chosen_by_any_column(lake: Lake) -> None:
    """A merge writes string views, which Arrow does not compare with strings."""
    lake.upsert("aspect_scores", scores("s1", 0.5))
    lake.upsert("aspect_scores", scores("s2", 0.25))
    where = {"judge_version": "v", "state_id": ["s2", "s3"]}
    assert lake.read("aspect_scores", where=where, columns=["scores"]).to_pylist() == [{"scores": [0.25]}]
    assert lake.count("aspect_scores", where=where) == 1


def _publish_for_ever(root: str) -> None:
    lake = Lake(root)
    for number in range(10_000):
        lake.publish("users", users("a", "b", f"c{number}"), partition=DAY, fingerprint=f"{number:016x}")


def test_a_killed_writer_leaves_a_whole_table(lake: Lake) -> None:
    lake.publish("users", users("a"), partition=DAY, fingerprint="aa" * 8)
    for attempt in range(5):
        writer = multiprocessing.get_context("spawn").Process(target=_publish_for_ever, args=(lake.root,))
        writer.start()
        version = lake.version("users")
        deadline = time.time() + 60
        while lake.version("users") == version and time.time() < deadline:
            time.sleep(0.01 * (attempt + 1))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        names = lake.read("users", where=DAY)["user_id"].to_pylist()
        assert len(names) == 3, names
        assert names[:2] == ["a", "b"]
    assert DeltaTable(lake.uri("users")).version() > 5


def _upsert_some(root: str, writer: int, count: int) -> None:
    for number in range(count):
        Lake(root).upsert("aspect_scores", scores(f"s{writer}-{number}", 0.5), metadata={"writer": writer})


def test_writers_side_by_side_lose_no_row(lake: Lake) -> None:
    """From the very first commit on: all of them find no table."""
    writers = [
        multiprocessing.get_context("spawn").Process(target=_upsert_some, args=(lake.root, number, 6))
        for number in range(3)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    states = lake.read("aspect_scores")["state_id"].to_pylist()
    assert sorted(states) == sorted(f"s{writer}-{number}" for writer in range(3) for number in range(6))


@pytest.mark.spark
@pytest.mark.parametrize("is_uri", [False, True])
def test_spark_publishes_and_reads_under_the_same_contract(tmp_path: Path, is_uri: bool) -> None:
    from pyspark.sql import functions as F

    from sgrec_core.lake.spark import publish_spark, read_spark, spark_session
    from sgrec_core.settings import Settings

    folder = tmp_path / "a lake"
    lake = Lake(folder.as_uri() if is_uri else folder)
    spark = spark_session(Settings(threads=2))
    frame = spark.range(1000).select(
        F.concat(F.lit("user/"), F.col("id").cast("string")).alias("user_id"), F.lit("{}").alias("profile")
    )
    assert publish_spark(lake, "users", frame, partition=DAY, fingerprint="aa" * 8) == 1000
    assert lake.count("users", where=DAY) == 1000
    assert lake.fingerprint("users", DAY) == int("aa" * 8, 16) >> 1
    assert read_spark(spark, lake, "users", DAY).filter("user_id = 'user/7'").count() == 1
    # Replacing, and another day beside it.
    publish_spark(lake, "users", frame.limit(10), partition=DAY, fingerprint="bb" * 8)
    publish_spark(lake, "users", frame.limit(5), partition={"day": "2026-01-06"}, fingerprint="bb" * 8)
    assert (lake.count("users", where=DAY), lake.count("users")) == (10, 15)
    version = lake.version("users")
    files = sorted(folder.rglob("*.parquet"))
    with pytest.raises(ContractError, match="column profile: .* rows are not valid"):
        publish_spark(lake, "users", frame.withColumn("profile", F.lit(None)), partition=DAY, fingerprint="cc" * 8)
    with pytest.raises(ContractError, match="user_id must be unique"):
        publish_spark(lake, "users", frame.withColumn("user_id", F.lit("x")), partition=DAY, fingerprint="cc" * 8)
    assert lake.version("users") == version
    assert sorted(folder.rglob("*.parquet")) == files, "a failed write leaves no files behind"


@pytest.mark.spark
@pytest.mark.parametrize("is_uri", [False, True])
def test_files_of_before_a_column_came_are_read_with_nulls(tmp_path: Path, is_uri: bool) -> None:
    from sgrec_core.lake.spark import read_spark, spark_session
    from sgrec_core.settings import Settings

    lake = Lake(tmp_path.as_uri() if is_uri else tmp_path)
    rows = pa.Table.from_pylist(rows_of("events"), load_contract("events").arrow_schema)
    write_deltalake(lake.uri("events"), rows.drop(["propensity"]), partition_by=["day", "role"])
    added = pa.schema([load_contract("events").arrow_schema.field("propensity")])
    lake.open("events").alter.add_columns(Schema.from_arrow(added).fields)
    frame = read_spark(spark_session(Settings(threads=1)), lake, "events", DAY)
    assert frame.where("propensity IS NULL").count() == frame.count() == rows.num_rows
    assert lake.read("events")["propensity"].null_count == rows.num_rows


def test_a_table_of_an_older_contract_is_named_with_what_to_do(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    contract = load_contract("item_codes")
    older = pa.schema([field for field in contract.arrow_schema if field.name != "wanted_codes"])
    DeltaTable.create(lake.uri("item_codes"), older, partition_by=["tokenizer_version"])
    with pytest.raises(ContractError, match=r"item_codes lacks column wanted_codes.*sgrec migrate"):
        lake.read("item_codes")
    with pytest.raises(ContractError, match="item_codes lacks column wanted_codes"):
        lake.upsert("item_codes", contract.arrow_schema.empty_table())


def test_a_version_that_is_gone_is_an_error_and_not_empty(lake: Lake) -> None:
    lake.publish("users", users("a"), partition=DAY, fingerprint="aa" * 8)
    first = lake.version("users")
    assert first is not None
    lake.publish("users", users("b"), partition=DAY, fingerprint="bb" * 8)
    assert lake.read("users", version=first)["user_id"].to_pylist() == ["a"]
    with pytest.raises(ContractError, match=rf"table users has no version {first + 2}, or has it no more"):
        lake.read("users", version=first + 2)

    (file,) = DeltaTable(lake.uri("users"), version=first).file_uris()
    Path(file).unlink()
    with pytest.raises(ContractError, match=rf"table users: files of version {first} are gone: .*{Path(file).name}"):
        lake.read("users", version=first)
    assert lake.read("users")["user_id"].to_pylist() == ["b"], "today's files are another"

    # As maintenance cleans a log up: a checkpoint stands for what came before.
    delta = DeltaTable(lake.uri("users"))
    delta.create_checkpoint()
    (Path(lake.uri("users")) / "_delta_log" / f"{first:020d}.json").unlink()
    with pytest.raises(ContractError, match=rf"table users has no version {first}, or has it no more"):
        lake.read("users", version=first)
    assert lake.read("users")["user_id"].to_pylist() == ["b"]
