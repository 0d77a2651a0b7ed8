"""What a night's scores and rewards cost when there are 1, 10, 100 and 1,000 such nights already.

    python -m benchmarks.lake [--short] [--folder PATH]

A night is of the default size: 32,009 calls about 2,808 states, in shards of 4,096 as the judge publishes them, and
2,048 groups of 16 as rows of rewards. A cold process does what the stages do: it looks up which calls are known,
publishes ledger and scores shard by shard, reads the scores of its states, publishes the rewards and reads them. No
state is asked about on two nights: of the simulator's nights none is. `sgrec maintain` runs every 7 nights. Nights
before the last such run are committed in the shape that it leaves, one file a night and table, 50 a commit; their
files are links to those of the first night (no other night reads them), the ledger has states of their own. The nights
after it are made by the functions of the stages.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np

FIRST = date(2026, 1, 5)
CALLS, STATES, GROUPS, SIZE, SHARD = 32_009, 2_808, 2_048, 16, 4_096
ASPECTS = ["s0", "s1", "s2", "s3"]
VERSION, REWARD_VERSION = "65bd6ebc298ee9a1", "1775dc258adf37f0"
WEEK = 7
"""Nights between two runs of `sgrec maintain`."""
BATCH = 50
"""Nights that are written in one commit."""
GOAL = 1.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="up to 50 nights, 3 processes each")
    parser.add_argument(
        "--folder", type=Path, help="where the lakes lie meanwhile (about 100 MB); default: a temporary one"
    )
    parser.add_argument("--night", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.night is not None:
        print(json.dumps(cold_night(str(options.folder), options.night)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure(
            Path(folder), (1, 5, 50) if options.short else (1, 10, 100, 1000), 3 if options.short else 7, options.short
        )


def day_of(night: int) -> str:
    return (FIRST + timedelta(days=night)).isoformat()


# What a cold process does


def cold_night(root: str, night: int) -> dict[str, float]:
    """CPU seconds of each part of a night; the making of its rows, the work of judge and fusion, is not among them."""
    from sgrec_core.judge.calls import ledger, scores
    from sgrec_core.lake import Lake

    parts = {"imports": cpu()}
    started = cpu()

    def part(name: str) -> None:
        nonlocal started
        parts[name] = cpu() - started
        started = cpu()

    answers, rewards = answers_of(night), rewards_of(night)
    part("rows")
    day, lake = day_of(night), Lake(root)
    asked = scores.table_of(answers)
    known, failed = scores.known_calls(lake, day, VERSION, answers)
    paid = ledger.paid_before(lake, day, VERSION)
    assert not known
    assert not paid
    part("plan")
    calls = sorted(answers)
    account = ledger.Account(judge_version=VERSION, day=day, kind="embedding")
    for start in range(0, CALLS, SHARD):
        shard = {call: answers[call] for call in calls[start : start + SHARD]}
        scores.publish_scores(lake, account, ASPECTS, shard, seconds=1.0, failed_before=failed)
    ledger.close_night(lake, day, VERSION)
    part("publish scores")
    found = scores.find_scores(lake, day, VERSION, asked, [*scores.CALL, "aspects", "scores"])
    assert found.num_rows == CALLS
    part("read scores")
    partition = {"day": day, "reward_version": REWARD_VERSION}
    lake.publish("rewards", rewards, partition=partition, fingerprint=f"{night:032x}")
    part("publish rewards")
    assert lake.read("rewards", where=partition).num_rows == GROUPS * SIZE
    part("read rewards")
    del parts["rows"]
    return parts


def cpu() -> float:
    """Seconds of all threads, in the program and in the kernel."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def answers_of(night: int) -> dict[Any, Any]:
    """call -> what the judge said; the calls are shared out evenly between the states."""
    from sgrec_core.judge.request import JudgeResult

    random = np.random.default_rng(night)
    names = state_names(night)
    values = np.round(random.uniform(-1, 1, (CALLS, len(ASPECTS))), 6).astype(np.float32).tolist()
    return {
        (names[call % STATES], f"i{call // STATES * 7 + call % 7:06d}", f"{call % 310:016x}"): JudgeResult(
            scores=values[call]
        )
        for call in range(CALLS)
    }


def state_names(night: int) -> list[str]:
    raw = np.random.default_rng([night, 1]).bytes(16 * STATES).hex()
    return [raw[start : start + 32] for start in range(0, len(raw), 32)]


def rewards_of(night: int) -> Any:
    """Rows of ``rewards`` without day and version."""
    import pyarrow as pa

    random, rows = np.random.default_rng([night, 2]), GROUPS * SIZE
    names = state_names(night)
    groups = np.random.default_rng([night, 3]).bytes(16 * GROUPS).hex()
    of_aspect = random.uniform(0, 1, (2, rows * len(ASPECTS))).astype(np.float32)
    offsets = pa.array(np.arange(0, rows * len(ASPECTS) + 1, len(ASPECTS)), pa.int32())
    numbers = ("holistic", "business_reward", "business_advantage", "semantic_advantage", "gate", "advantage")
    return pa.table(
        {
            "decision_id": [groups[row // SIZE * 32 : row // SIZE * 32 + 32] for row in range(rows)],
            "state_id": [names[row // SIZE] for row in range(rows)],
            "rank": pa.array(np.arange(rows) % SIZE, pa.int32()),
            "item_id": [f"i{(row * 17) % 310:06d}" for row in range(rows)],
            "judged": pa.array(np.ones(rows, bool)),
            "aspects": pa.array([ASPECTS] * rows),
            "scores": pa.ListArray.from_arrays(offsets, pa.array(of_aspect[0])),
            "weights": pa.ListArray.from_arrays(offsets, pa.array(of_aspect[1])),
            **{name: random.uniform(0, 1, rows) for name in numbers},
            "code_advantages": pa.nulls(rows, pa.list_(pa.float64())),
        }
    )


# What was there before


def add_nights(lake: Any, nights: range) -> None:
    """Nights as `sgrec maintain` leaves them after the last whole week, and by the functions of the stages since."""
    if nights.start == 0:
        cold_night(lake.root, 0)
    first, maintained = max(nights.start, 1), nights.stop - nights.stop % WEEK
    if maintained > first:
        maintain_lake(lake)
        for start in range(first, maintained, BATCH):
            add_maintained(lake, range(start, min(start + BATCH, maintained)))
        maintain_lake(lake)
    for night in range(max(first, maintained), nights.stop):
        cold_night(lake.root, night)


def add_maintained(lake: Any, nights: range) -> None:
    """One commit a table: a file a night of scores and rewards with their fingerprints, and the rows of the ledger."""
    import pyarrow as pa
    from deltalake import CommitProperties, Transaction, write_deltalake
    from deltalake.transaction import AddAction

    from sgrec_core.judge.calls import ledger
    from sgrec_core.lake import load_contract
    from sgrec_core.lake.tables import application_id

    for table, version in (("aspect_scores", "judge_version"), ("rewards", "reward_version")):
        delta = lake.create(table)
        name = VERSION if table == "aspect_scores" else REWARD_VERSION
        file = first_night(delta)
        actions, transactions = [], []
        for night in nights:
            partition = {"day": day_of(night), version: name}
            order = [version, "day"] if table == "aspect_scores" else ["day", version]
            path = "/".join([*(f"{column}={partition[column]}" for column in order), f"part-{night:05d}.parquet"])
            target = Path(lake.uri(table)) / path
            target.parent.mkdir(parents=True)
            os.link(Path(lake.uri(table)) / file["path"], target)
            size, stats = target.stat().st_size, file["stats"]
            actions.append(AddAction(path, size, partition, int(time.time() * 1000), True, stats))
            if table == "rewards":
                transactions.append(Transaction(application_id(table, partition), night))
        delta.create_write_transaction(
            actions,
            mode="append",
            schema=delta.schema(),
            partition_by=list(load_contract(table).partition_by),
            commit_properties=CommitProperties(app_transactions=transactions),
        )
    entries = []
    for night in nights:
        account = ledger.Account(judge_version=VERSION, day=day_of(night), kind="embedding")
        random = np.random.default_rng([night, 4])
        for start in range(0, CALLS, SHARD):
            calls = min(SHARD, CALLS - start)
            states = np.sort(random.integers(-(2**63), 2**63 - 1, calls * STATES // CALLS + 1))
            spent = ledger.Spent(asked=calls, seconds=1.0)
            entries.append({**ledger.row_of(account, spent, ()), "states": states.astype("<i8").tobytes()})
    schema = load_contract("judge_ledger").arrow_schema
    write_deltalake(lake.uri("judge_ledger"), pa.Table.from_pylist(entries, schema=schema), mode="append")


def first_night(delta: Any) -> dict[str, Any]:
    """Path and statistics of the one file of the first night, from the checkpoint that `sgrec maintain` wrote."""
    import pyarrow.parquet as pq

    checkpoint = max(Path(delta.table_uri.removeprefix("file://"), "_delta_log").glob("*.checkpoint.parquet"))
    adds = [row for row in pq.read_table(checkpoint, columns=["add"])["add"].to_pylist() if row and row["path"]]
    (first,) = [add for add in adds if f"day={day_of(0)}" in add["path"]]
    return {"path": first["path"], "stats": first["stats"]}


def maintain_lake(lake: Any) -> float:
    """`sgrec maintain`; the seconds that it took."""
    from sgrec_core.lake.maintenance import maintain_all

    started = time.monotonic()
    # So that what a week ago was replaced is gone here as it is there.
    maintain_all(lake, timedelta(0))
    return time.monotonic() - started


# Measuring


def measure(folder: Path, points: tuple[int, ...], rounds: int, short: bool) -> None:
    from benchmarks.report import Claim, write
    from sgrec_core.lake import Lake

    lake, grown, made = Lake(folder / "lake"), 0, {}
    for point in points:
        started = time.monotonic()
        add_nights(lake, range(grown, point))
        made[point] = time.monotonic() - started
        copy(folder / "lake", folder / f"after-{point}")
        grown = point
        print(f"{point} nights made in {made[point]:.0f} s", file=sys.stderr)
    parts: dict[int, list[dict[str, float]]] = {point: [] for point in points}
    for _ in range(rounds):
        for point in points:
            parts[point].append(in_a_cold_process(folder, point))
    maintenance = maintain_lake(lake)
    totals = {point: np.array([sum(run.values()) for run in runs]) for point, runs in parts.items()}
    work = {point: totals[point] - [run["imports"] for run in runs] for point, runs in parts.items()}
    claims = [
        Claim(
            name=f"CPU of a night after {point:,} nights",
            value=float(np.median(totals[point])),
            interval=spread(totals[point]),
            unit="s",
            goal="",
            met=None,
        )
        for point in points
    ]
    for name, of in (("CPU", totals), ("CPU without imports", work)):
        ratio = float(np.median(of[points[-1]]) / np.median(of[points[0]]))
        rounds_ratio = of[points[-1]] / of[points[0]]
        goal = f"at most {GOAL}"
        claims.append(
            Claim(
                name=f"{name} after {points[-1]:,} nights by that after 1",
                value=ratio,
                interval=spread(rounds_ratio),
                unit="times",
                goal=goal,
                met=ratio <= GOAL,
            )
        )
    claims.append(
        Claim(
            name=f"`sgrec maintain` after {points[-1]:,} nights",
            value=maintenance,
            interval=None,
            unit="s",
            goal="",
            met=None,
        )
    )
    medians = {
        point: {name: round(float(np.median([run[name] for run in runs])), 4) for name in runs[0]}
        for point, runs in parts.items()
    }
    rows = ["| nights | " + " | ".join(medians[points[0]]) + " |", "| --- |" + " --- |" * len(medians[points[0]])]
    rows += [
        f"| {point:,} | " + " | ".join(f"{value:.3f}" for value in of.values()) + " |" for point, of in medians.items()
    ]
    text = (__doc__ or "").split("\n\n", 2)[2].strip()
    text += (
        f"\n\nMedians of {rounds} processes, taken in turns; intervals are the least and the largest. CPU seconds of "
        "each part:\n\n"
    )
    name = "lake-short" if short else "lake"
    page = write(
        name,
        claims,
        seeds=[0],
        text=text + "\n".join(rows),
        details={"parts": parts, "seconds to make the nights": made, "states": STATES, "calls": CALLS},
    )
    print(page.read_text())


def copy(lake: Path, to: Path) -> None:
    """A lake with the same files: data files and log entries are never changed, only added."""
    shutil.copytree(lake, to, copy_function=os.link)


def in_a_cold_process(folder: Path, point: int) -> dict[str, float]:
    root = folder / "measured"
    copy(folder / f"after-{point}", root)
    command = [sys.executable, "-m", "benchmarks.lake", "--night", str(point), "--folder", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shutil.rmtree(root)
    return json.loads(done.stdout)


def spread(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


if __name__ == "__main__":
    main()
