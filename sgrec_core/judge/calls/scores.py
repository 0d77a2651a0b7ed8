"""What the judge has said: scores that ``aspect_scores`` holds, and shards of new ones.

The table is partitioned by judge and by the day for which a call was made. The ledger knows the days for which a state
was asked about, so that a night reads the scores of its own states, however many nights there are.
"""

import json
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core.judge.calls.ledger import Account, Spent, charge, days_asked
from sgrec_core.judge.calls.requests import Call
from sgrec_core.judge.engines import Engine
from sgrec_core.judge.request import JudgeRequest, JudgeResult, Usage
from sgrec_core.lake import Lake

CALL = ["state_id", "item_id", "item_hash"]


def find_scores(lake: Lake, day: str, version: str, calls: pa.Table, columns: Sequence[str]) -> pa.Table:
    """What judge ``version`` has said of ``calls`` (columns `CALL`), on ``day`` or for any other: a row a call.

    Of a call that failed and was made again the row with scores, else the newest one. Other days are looked at only for
    calls that the day's own rows do not answer: of a night that was judged, nearly none.
    """
    names = _names(calls)
    found = _read(lake, version, [day], calls["state_id"].unique().to_pylist(), columns)
    answered = _names(found.filter(pc.is_null(found["failure"])))
    states = calls["state_id"].filter(pc.invert(pc.is_in(names, value_set=answered))).unique().to_pylist()
    if states and (others := sorted(days_asked(lake, version, states) - {day})):
        found = pa.concat_tables([found, _read(lake, version, others, states, columns)])
    return _newest(found.filter(pc.is_in(_names(found), value_set=names))).select(columns)


def scores_of_states(lake: Lake, day: str, version: str, state_ids: Iterable[str], columns: Sequence[str]) -> pa.Table:
    """As `find_scores`, all calls about the states."""
    states = sorted(set(state_ids))
    days = sorted({day, *days_asked(lake, version, states)})
    return _newest(_read(lake, version, days, states, columns)).select(columns)


def table_of(calls: Collection[Call]) -> pa.Table:
    """Calls as rows."""
    return pa.table({name: pa.array([call[place] for call in calls], pa.string()) for place, name in enumerate(CALL)})


def _names(calls: pa.Table) -> pa.ChunkedArray:
    """One text for each call."""
    return pc.binary_join_element_wise(*(calls[name] for name in CALL), "\x1f")


def _read(lake: Lake, version: str, days: list[str], states: list[str], columns: Sequence[str]) -> pa.Table:
    """Rows of the days about the states, with what `_newest` needs."""
    wanted = list(dict.fromkeys([*CALL, "day", "failure", *columns]))
    where = {"judge_version": version, "day": days, "state_id": states}
    return lake.read("aspect_scores", where=where, columns=wanted, ordered=False)


def _newest(rows: pa.Table) -> pa.Table:
    """The row that counts of each call, in the order of `CALL`."""
    rows = rows.append_column("failed", pc.is_valid(rows["failure"]))
    order = [*((name, "ascending") for name in CALL), ("failed", "ascending"), ("day", "descending")]
    rows = rows.sort_by(order)
    first = np.ones(rows.num_rows, dtype=bool)
    if rows.num_rows > 1:
        same = [pc.equal(rows[name].slice(1), rows[name].slice(0, rows.num_rows - 1)) for name in CALL]
        first[1:] = ~np.logical_and.reduce([column.to_numpy() for column in same])
    return rows.filter(pa.array(first))


def known_calls(lake: Lake, day: str, version: str, calls: Collection[Call]) -> tuple[set[Call], set[Call]]:
    """Those of ``calls`` that judge ``version`` has scored, and those that failed when asked for ``day`` last.

    Failed ones are tried again; those of the day then replace their rows (`publish_scores`).
    """
    found = find_scores(lake, day, version, table_of(calls), [*CALL, "day", "failure"])
    return scored_and_failed(found, day)


def scored_and_failed(rows: pa.Table, day: str) -> tuple[set[Call], set[Call]]:
    """See `known_calls`; ``rows`` are those of `find_scores` or `scores_of_states`."""
    failed = pc.is_valid(rows["failure"])
    of_day = pc.equal(rows["day"].cast(pa.string()), day)
    return set(calls_of(rows.filter(pc.invert(failed)))), set(calls_of(rows.filter(pc.and_(failed, of_day))))


def calls_of(rows: pa.Table) -> Iterator[Call]:
    """The calls that rows of ``aspect_scores`` answer."""
    return zip(*(rows[name].to_pylist() for name in CALL), strict=True)


def remember_version(lake: Lake, version: str, engine: Engine) -> None:
    """The row of ``judge_versions`` that says what ``version`` stands for, if it is not there yet."""
    if lake.count("judge_versions", where={"judge_version": version}):
        return
    facts = {name: fact for name, fact in engine.version_facts().items() if name not in ("rubric", "code")}
    row = {"judge_version": version, "facts": json.dumps(facts, sort_keys=True), "rubric": engine.rubric.text}
    lake.upsert("judge_versions", pa.Table.from_pylist([row]))


def score_shard(
    lake: Lake,
    account: Account,
    engine: Engine,
    requests: Mapping[Call, JudgeRequest],
    *,
    failed_before: Collection[Call] = (),
) -> Spent:
    """Ask ``engine`` and publish its answers."""
    before, started = replace(engine.usage), time.monotonic()
    results = engine.score(list(requests.values()))
    return publish_scores(
        lake,
        account,
        engine.rubric.aspect_ids,
        dict(zip(requests, results, strict=True)),
        usage=engine.usage - before,
        seconds=time.monotonic() - started,
        failed_before=failed_before,
    )


def publish_scores(
    lake: Lake,
    account: Account,
    aspects: list[str],
    answers: Mapping[Call, JudgeResult],
    *,
    usage: Usage | None = None,
    seconds: float = 0.0,
    failed_before: Collection[Call] = (),
) -> Spent:
    """Charge the account, then add rows of ``aspect_scores``: ``usage`` and ``seconds`` are those of one engine.

    Args:
        failed_before: calls that are rows of the account's day already, which are replaced. All others are new.
    """
    results = answers.values()
    masses = [result.format_mass for result in results if result.format_mass is not None]
    spent = Spent(
        asked=len(results),
        unanswered=sum(result.unanswered for result in results),
        failed=sum(result.failure is not None for result in results),
        format_measured=len(masses),
        left_format=len(masses) - sum(masses),
        seconds=round(seconds, 3),
        **asdict(usage or Usage()),
    )
    charge(lake, account, spent, {state for state, _, _ in answers})
    rows = rows_of(account, answers, aspects)
    again = pa.array([call in failed_before for call in answers], pa.bool_())
    facts = {"day": account.day, "judge_version": account.judge_version, "judge_worker": account.worker}
    lake.append("aspect_scores", rows.filter(pc.invert(again)), metadata=facts)
    if pc.any(again, min_count=0).as_py():
        lake.upsert("aspect_scores", rows.filter(again), metadata=facts)
    return spent


def rows_of(account: Account, answers: Mapping[Call, JudgeResult], aspects: list[str]) -> pa.Table:
    """Rows of ``aspect_scores``."""
    results = answers.values()
    return pa.table(
        {
            "judge_version": [account.judge_version] * len(answers),
            "day": pa.array([account.day] * len(answers), pa.string()).cast(pa.date32()),
            "state_id": [state for state, _, _ in answers],
            "item_id": [item for _, item, _ in answers],
            "item_hash": [content for _, _, content in answers],
            "aspects": [aspects] * len(answers),
            "scores": pa.array([result.scores for result in results], pa.list_(pa.float32())),
            "probabilities": pa.array([result.probabilities for result in results], pa.list_(pa.float32())),
            "format_mass": pa.array([result.format_mass for result in results], pa.float64()),
            "evidence": pa.array([result.evidence for result in results], pa.string()),
            "failure": pa.array([result.failure for result in results], pa.string()),
        }
    )
