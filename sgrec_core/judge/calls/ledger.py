"""What calls to the judge took: who may still pay, how fast a model is, for which days a state was asked about.

A row is written before the scores that it pays for: a kill between the two can lose answers, never make
``judge.max_calls`` pay twice. Rows are only added.
"""

import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, date, datetime
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core import __version__
from sgrec_core.hashing import hash_integers
from sgrec_core.judge.engines import Engine
from sgrec_core.judge.engines.backends import served_model
from sgrec_core.lake import Lake, load_contract
from sgrec_core.lake.storage import scan

LEDGER = "judge_ledger"
AT_ONCE = 512
"""Rows whose states are looked at together: a megabyte or two."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """Whom calls are charged to."""

    judge_version: str
    day: str
    kind: str
    """What has a speed of its own; see `kind_of`."""
    purpose: Literal["night", "labels", "end"] = "night"
    """Calls about labels belong to no night, so that no night's limit is charged; for end see `close_night`."""
    worker: str = ""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What making calls took; columns of the ledger, and summed."""

    asked: int = 0
    unanswered: int = 0
    """Of these, calls that no model answered (server gone, out of time): nobody pays for them."""
    failed: int = 0
    """Of the asked ones, those without scores, whatever the reason."""
    format_measured: int = 0
    """Calls of which it was measured how likely the model would have left the format."""
    left_format: float = 0.0
    """The sum of these probabilities."""
    prompt: int = 0
    """Prompt tokens."""
    cached: int = 0
    """Prompt tokens that were not computed again."""
    generated: int = 0
    seconds: float = 0.0
    """Of the engines, added up."""

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    @classmethod
    def of_rows(cls, rows: pa.Table) -> "Spent":
        """The sum of rows of the ledger."""
        # In the order of writing, so that sums of fractions always come out the same.
        return sum((cls(**row) for row in rows.sort_by("written").select(COLUMNS).to_pylist()), cls())


COLUMNS = [field.name for field in fields(Spent)]


def charge(lake: Lake, account: Account, spent: Spent, state_ids: Iterable[str]) -> None:
    """The row of a shard; its scores are written after it."""
    _add(lake, row_of(account, spent, state_ids))


def paid_before(lake: Lake, day: str, version: str) -> int:
    """Calls that earlier runs for ``day`` paid to judge ``version``.

    Read it after `scores.known_calls`: of scores that another writer is adding, the calls are then among these.
    """
    spent = Spent.of_rows(_rows(lake, version, day=day, purpose="night"))
    return spent.asked - spent.unanswered


def has_judged_nights(lake: Lake, version: str) -> bool:
    """Whether any calls of judge ``version`` were made for a night, and not just for labels."""
    return _rows(lake, version, purpose="night").num_rows > 0


def days_asked(lake: Lake, version: str, state_ids: Iterable[str]) -> set[str]:
    """The days for which judge ``version`` was asked about any of the states."""
    wanted = pa.array(hash_integers(set(state_ids)), pa.int64())
    days: set[date] = set()
    for rows in scan(lake, LEDGER, {"judge_version": version}, ["day", "states"], rows=AT_ONCE):
        ends = np.cumsum(pc.binary_length(rows["states"]).to_numpy()) // 8
        # The hashes of all these rows one after the other, and no copy of them: there are millions after some years.
        hashes = pa.Array.from_buffers(pa.int64(), ends[-1], [None, rows["states"].buffers()[2]])
        places = pc.indices_nonzero(pc.is_in(hashes, value_set=wanted)).to_numpy()
        days |= set(rows["day"].take(np.searchsorted(ends, places, side="right")).to_pylist())
    return {day.isoformat() for day in days}


def uncounted_workers(lake: Lake, day: str, version: str) -> Spent:
    """What workers have spent for the day since the stage score_aspects ran to its end last (`close_night`)."""
    end = pc.max(_rows(lake, version, day=day, purpose="end")["written"])
    mine = _rows(lake, version, "worker", day=day, purpose="night")
    mine = mine.filter(pc.not_equal(mine["worker"], ""))
    return Spent.of_rows(mine.filter(pc.greater(mine["written"], end)) if end.is_valid else mine)


def close_night(lake: Lake, day: str, version: str) -> None:
    """Note that the stage score_aspects came to its end with judge ``version``, and has told of what workers spent."""
    if judged_with(lake, day) != version or uncounted_workers(lake, day, version).asked:
        account = Account(judge_version=version, day=day, kind="", purpose="end")
        _add(lake, row_of(account, Spent(), ()))


def judged_with(lake: Lake, day: str) -> str | None:
    """The judge version with which the stage score_aspects of ``day`` came to its end last; None where it never did."""
    ends = _rows(lake, None, "judge_version", day=day, purpose="end")
    return ends.sort_by("written")["judge_version"][-1].as_py() if ends.num_rows else None


class Speed(NamedTuple):
    """What one engine has done in a second, the time that it takes to load included."""

    tokens: float
    """Prompt tokens (those that were computed, where that is known) and generated ones."""
    counts_computed: bool
    """Whether it is known which prompt tokens were computed; some servers do not say."""


def measured_speed(lake: Lake, version: str, engine: Engine) -> Speed | None:
    """Speed of one engine over the shards of judge ``version``; of other versions with the same model where it is new.

    None when that model has not worked yet.
    """
    for judge in (version, None):
        rows = _rows(lake, judge, "kind")
        spent = Spent.of_rows(rows.filter(pc.equal(rows["kind"], kind_of(engine))))
        if spent.asked:
            tokens = spent.prompt - spent.cached + spent.generated
            return Speed(tokens / spent.seconds, spent.cached > 0) if tokens and spent.seconds else None
    return None


def kind_of(engine: Engine) -> str:
    """What has a speed of its own: the engine, its model and the GPUs under it."""
    judge = engine.settings.judge
    return " ".join([judge.engine, served_model(judge), judge.mode, f"{judge.gpus} GPU"])


def row_of(account: Account, spent: Spent, state_ids: Iterable[str]) -> dict[str, Any]:
    """A row of the ledger, written now."""
    return {
        "judge_version": account.judge_version,
        "entry_id": uuid.uuid4().hex,
        "written": datetime.now(UTC),
        "day": date.fromisoformat(account.day),
        "purpose": account.purpose,
        "worker": account.worker,
        "kind": account.kind,
        **asdict(spent),
        "states": np.sort(hash_integers(set(state_ids))).astype("<i8").tobytes(),
        "sgrec_version": __version__,
    }


def _add(lake: Lake, row: dict[str, Any]) -> None:
    lake.append(LEDGER, pa.Table.from_pylist([row], schema=load_contract(LEDGER).arrow_schema))


def _rows(lake: Lake, version: str | None, *columns: str, **where: str) -> pa.Table:
    """Rows of judge ``version``, or of all: what was spent, when it was written, and ``columns``."""
    if version is not None:
        where["judge_version"] = version
    return lake.read(LEDGER, where=where, columns=["written", *COLUMNS, *columns], ordered=False)
