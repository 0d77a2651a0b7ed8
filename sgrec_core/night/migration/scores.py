"""What the judge said and was paid: in layout 0 commits of ``aspect_scores`` told what was paid, for which day."""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, write_deltalake

from sgrec_core.errors import SettingsError
from sgrec_core.files import read_json
from sgrec_core.hashing import digest
from sgrec_core.judge.calls.ledger import COLUMNS, LEDGER, Account, Spent, row_of
from sgrec_core.judge.calls.scores import CALL
from sgrec_core.lake import Lake, load_contract
from sgrec_core.night.migration.step import VERSION, Migration

TABLE = "aspect_scores"
FOR_LABELS = " labels"
"""Ended the day in commits whose calls belonged to no night."""
COUNTED = "judge_counted.json"


@dataclass(kw_only=True)
class Commit:
    """One that published scores."""

    version: int
    """Of the table."""
    written: datetime
    account: Account
    spent: Spent
    states: set[str] = field(default_factory=set)


def write_ledger(migration: Migration) -> Iterator[str]:
    """A row of ``judge_ledger`` for each commit that told of calls, and for each end of the stage score_aspects."""
    if not _is_old(migration.lake):
        return
    commits, days = commits_and_days(migration)
    rows = [_row(commit, f"commit {commit.version}") for commit in commits]
    rows += [_row(end, f"end {end.account.day} {end.account.judge_version}") for end in _ends(migration, commits)]
    # States of scores whose commits are gone from Delta's log: they must be found, and nobody paid as far as is known.
    known = {(commit.account.judge_version, commit.account.day, state) for commit in commits for state in commit.states}
    others: dict[tuple[str, str], set[str]] = defaultdict(set)
    for (judge, state, _, _), day in days.items():
        if (judge, day, state) not in known:
            others[judge, day].add(state)
    for (judge, day), states in sorted(others.items()):
        account = Account(judge_version=judge, day=day, kind="", purpose="labels")
        moment = datetime.combine(date.fromisoformat(day), datetime.min.time(), UTC)
        rest = Commit(version=-1, written=moment, account=account, spent=Spent(), states=states)
        rows.append(_row(rest, f"rest {day} {judge}"))
    written = migration.lake.read(LEDGER, columns=["entry_id"])["entry_id"].to_pylist()
    rows = [row for row in rows if row["entry_id"] not in written]
    if rows and not migration.dry_run:
        migration.lake.append(LEDGER, pa.Table.from_pylist(rows, schema=load_contract(LEDGER).arrow_schema))
    paid = sum(commit.spent.asked - commit.spent.unanswered for commit in commits)
    if rows:
        yield f"table {LEDGER}: {len(commits)} commits, by which {paid:,} calls were paid"


def lay_out_scores(migration: Migration) -> Iterator[str]:
    """``aspect_scores`` by judge and day, under the versions that judges have now, in one commit."""
    lake, contract = migration.lake, load_contract(TABLE)
    delta = lake.open(TABLE)
    if delta is None or not _is_old(lake):
        return
    _, days = commits_and_days(migration)
    old = delta.to_pyarrow_table()
    judges = [migration.judges.get(judge, judge) for judge in old["judge_version"].to_pylist()]
    calls = zip(judges, *(old[name].to_pylist() for name in CALL), strict=True)
    of_rows = pa.array([date.fromisoformat(days[call]) for call in calls], pa.date32())
    place = old.schema.get_field_index("judge_version")
    rows = old.set_column(place, "judge_version", pa.array(judges, pa.string())).append_column("day", of_rows)
    rows = contract.conform(rows)
    contract.check(rows)
    contract.check_unique(rows)
    if not migration.dry_run:
        write_deltalake(
            lake.uri(TABLE),
            rows.sort_by([(name, "ascending") for name in contract.key]),
            mode="overwrite",
            schema_mode="overwrite",
            partition_by=list(contract.partition_by),
            commit_properties=CommitProperties(custom_metadata={"sgrec.migrated_from_layout": "0"}),
        )
    yield f"table {TABLE}: {rows.num_rows:,} scores of {len(set(of_rows.to_pylist()))} days"


def commits_and_days(migration: Migration) -> tuple[list[Commit], dict[tuple[str, ...], str]]:
    """The commits, the oldest first, and for which day each row (judge now, and `CALL`) was asked for."""
    delta = migration.lake.open(TABLE)
    assert delta is not None
    commits = []
    days: dict[tuple[str, ...], str] = {}
    failed: set[tuple[str, ...]] = set()
    for facts in sorted(delta.history(), key=lambda commit: commit["version"]):
        if "sgrec.judge_asked" not in facts:
            continue
        commit = _commit(migration, facts)
        commits.append(commit)
        for state, item, content, failure in _rows_added(migration.lake, commit.version):
            call = (commit.account.judge_version, state, item, content)
            # A commit writes files anew: what is in them already was asked for before, unless it had failed.
            if call not in days or (call in failed and failure is None):
                days[call] = commit.account.day
                commit.states.add(state)
                (failed.discard if failure is None else failed.add)(call)
    return commits, days | _days_of_others(migration, days)


def _commit(migration: Migration, facts: dict[str, Any]) -> Commit:
    day, judge = facts["sgrec.day"], facts["sgrec.judge_version"]
    return Commit(
        version=facts["version"],
        written=datetime.fromtimestamp(facts["timestamp"] / 1000, UTC),
        account=Account(
            judge_version=migration.judges.get(judge, judge),
            day=day.removesuffix(FOR_LABELS),
            kind=facts["sgrec.judge_kind"],
            purpose="labels" if day.endswith(FOR_LABELS) else "night",
            worker=facts["sgrec.judge_worker"],
        ),
        spent=Spent(**{name: json.loads(facts[f"sgrec.judge_{name}"]) for name in COLUMNS}),
    )


def _rows_added(lake: Lake, version: int) -> Iterator[tuple[str, str, str, str | None]]:
    """Call and failure of the rows in files that a commit added, as far as they are still there."""
    root = Path(lake.uri(TABLE))
    try:
        actions = [json.loads(line) for line in (root / "_delta_log" / f"{version:020}.json").open()]
    except FileNotFoundError:
        return
    for action in actions:
        path = root / unquote(action.get("add", {}).get("path", ""))
        if path.is_file():
            rows = pq.read_table(path, columns=[*CALL, "failure"], partitioning=None)
            yield from zip(*(column.to_pylist() for column in rows.columns), strict=True)


def _days_of_others(migration: Migration, days: dict[tuple[str, ...], str]) -> dict[tuple[str, ...], str]:
    """Rows that no commit tells of: the first day that has their state, else the first of all."""
    delta = migration.lake.open(TABLE)
    assert delta is not None
    rows = delta.to_pyarrow_table(columns=["judge_version", *CALL]).to_pylist()
    calls = [
        (migration.judges.get(row["judge_version"], row["judge_version"]), *(row[c] for c in CALL)) for row in rows
    ]
    others = [call for call in calls if call not in days]
    if not others:
        return {}
    columns = ["day", "state_id"]
    states = migration.lake.read(
        "user_states", where={"state_id": sorted({call[1] for call in others})}, columns=columns
    )
    of_state: dict[str, str] = {}
    for row in states.sort_by("day").to_pylist():
        of_state.setdefault(row["state_id"], row["day"].isoformat())
    first = min([*days.values(), *of_state.values(), *(day for day, _, _ in migration.reports())], default=None)
    if first is None:
        raise SettingsError(f"table {TABLE}: no day is known in {migration.home} for which its rows were asked for")
    return {call: of_state.get(call[1], first) for call in others}


def _ends(migration: Migration, commits: list[Commit]) -> Iterator[Commit]:
    """Ends of the stage score_aspects, by judge in the order in which they came to be; no calls."""
    for day, folder, reports in migration.reports():
        last = datetime.min.replace(tzinfo=UTC)
        for judge, counted in read_json(reports / COUNTED).items() if not folder else ():
            before = [commit.written for commit in commits if commit.version <= counted]
            # A row each, in order; all that workers spent up to that version of the table has been told of.
            last = max([*before, last + timedelta(microseconds=1)])
            version = migration.judges.get(judge, judge)
            account = Account(judge_version=version, day=day, kind="", purpose="end")
            yield Commit(version=counted, written=last, account=account, spent=Spent())


def _row(commit: Commit, name: str) -> dict[str, Any]:
    row = row_of(commit.account, commit.spent, commit.states)
    return {**row, "entry_id": digest("layout 0", name, length=32), "written": commit.written, "sgrec_version": VERSION}


def _is_old(lake: Lake) -> bool:
    delta = lake.open(TABLE)
    return delta is not None and tuple(delta.metadata().partition_columns) != load_contract(TABLE).partition_by
