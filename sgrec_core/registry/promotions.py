"""Who is champion, now and for any night: what the rows of table ``promotions`` add up to.

A decision is a row and a commit: a version is *promoted*, the last promotion is taken back (*rollback*), or a night
notes the champion that it works against (*pin*). What serves is the last promotion that was not taken back. Each counts
as of a day: a night's own, and for a person that of the newest night so far. Days of promotions and roll-backs never go
back, so what nights met is settled: a night pins what decisions as of earlier days add up to, and keeps it.

A person also freezes promotion (*hold*), and lifts that (*release*). Neither changes a champion: they have the day of
the calendar, and between the two no night promotes, of whatever day it is. Nor does *accept*, a person's word that
figures of night ``day`` are right, though they were out of the bands of their past (`sgrec_core.quality.alarms`): these
figures and no others, so that other content of the day is looked at anew.
"""

import getpass
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, date, datetime
from typing import Literal

import pyarrow as pa
from deltalake import QueryBuilder
from deltalake.exceptions import CommitFailedError

from sgrec_core.errors import SgrecError
from sgrec_core.lake import Lake, load_contract
from sgrec_core.lake.tables import TRIES, check_age
from sgrec_core.runtime.stages import GENERATOR

TABLE = "promotions"
FIGURES_APART = "; "
"""Between those that one acceptance names."""

Action = Literal["promote", "rollback", "pin", "hold", "release", "accept"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A row of the table, before it has its ``sequence`` and time."""

    day: str
    action: Action
    model: str
    version: str | None
    fingerprint: str | None
    who: str
    reason: str

    def __str__(self) -> str:
        reason = " ".join(self.reason.split())  # people's; the words are one line
        if self.action == "hold":
            return f"held by {self.who} since {self.day}: {reason}; `sgrec release` lifts it"
        if self.action == "release":
            return f"released by {self.who} on {self.day}: {reason}"
        if self.action == "accept":
            return f"night {self.day} was accepted by {self.who}: {reason}"
        done = {"promote": "promoted", "rollback": "rolled back", "pin": "pinned"}[self.action]
        as_of = "" if self.who.endswith(self.day) else f" as of {self.day}"
        return f"{self.model} version {self.version} was {done} by {self.who}{as_of}"


def standing(decisions: Sequence[Decision], *, before: str = "9999-12-31") -> list[Decision]:
    """Promotions that were not taken back, the last one serves; of decisions as of days before ``before``."""
    promotions: list[Decision] = []
    for decision in decisions:
        if decision.action == "promote" and decision.day < before:
            promotions.append(decision)
        elif decision.action == "rollback" and decision.day < before:
            promotions.pop()
    return promotions


def champion(decisions: Sequence[Decision], *, before: str = "9999-12-31") -> str | None:
    """Version that serves."""
    promotions = standing(decisions, before=before)
    return promotions[-1].version if promotions else None


def pinned(decisions: Sequence[Decision], day: str) -> str | None:
    """Version that night ``day`` works against: what it did before, else the champion of the nights before it."""
    for decision in decisions:
        if decision.action == "pin" and decision.day == day:
            return decision.version
    return champion(decisions, before=day)


def last_change(decisions: Sequence[Decision], version: str | None = None) -> Decision | None:
    """The last promotion or roll-back, of ``version`` or of any."""
    changes = [d for d in decisions if d.action in ("promote", "rollback") and version in (None, d.version)]
    return changes[-1] if changes else None


def last_hold_or_release(decisions: Sequence[Decision]) -> Decision | None:
    """What a person said last about whether nights promote."""
    said = [decision for decision in decisions if decision.action in ("hold", "release")]
    return said[-1] if said else None


def held(decisions: Sequence[Decision]) -> Decision | None:
    """The hold that stands."""
    last = last_hold_or_release(decisions)
    return last if last is not None and last.action == "hold" else None


def why_not(decisions: Sequence[Decision], version: str, day: str) -> str | None:
    """What stands against a promotion of ``version`` by night ``day``, in words; nothing where it has promoted it."""
    own, last, hold = last_change(decisions, version), last_change(decisions), held(decisions)
    if own is not None and (own.action, own.day) == ("promote", day):
        return None
    if hold is not None:
        return str(hold)
    if own is not None and own.action == "rollback":
        return f"{own}; promote it with `sgrec promote --version {version}`"
    if last is not None and last.day > day:
        return f"{last}; an older night moves no alias"
    if last is not None and last.who != f"night {day}" and champion(decisions) != pinned(decisions, day):
        return f"{last}; night {day} was not compared with what that made serve"
    return None


# What comes next, or None where there is nothing to add


def pin(decisions: Sequence[Decision], day: str, version: str | None, fingerprint: str | None) -> Decision | None:
    """Night ``day`` works against ``version``."""
    if any(decision.action == "pin" and decision.day == day for decision in decisions):
        return None
    return _decision("pin", day, version, fingerprint, f"night {day}", "champion of the nights before")


def promotion_by_night(
    decisions: Sequence[Decision], day: str, version: str, fingerprint: str, reason: str
) -> Decision | None:
    """``version`` passed the gate of night ``day``, and nothing stands against it (`why_not`)."""
    own = last_change(decisions, version)
    if own is not None and (own.action, own.day) == ("promote", day):
        return None
    return _decision("promote", day, version, fingerprint, f"night {day}", reason)


def promotion_by_hand(
    decisions: Sequence[Decision], made: str, version: str, fingerprint: str, reason: str
) -> Decision | None:
    """A person wants ``version``, which night ``made`` made, to serve."""
    if champion(decisions) == version:
        return None
    return _decision("promote", _newest_day(decisions, made), version, fingerprint, login(), reason)


def roll_back(decisions: Sequence[Decision], reason: str) -> Decision:
    """A person takes back what serves.

    Raises:
        SgrecError: nothing was ever promoted, or everything was taken back.
    """
    promotions = standing(decisions)
    if not promotions:
        raise SgrecError(f"{GENERATOR} has no champion to roll back; run a night or `sgrec promote --version N` first")
    last = promotions[-1]
    return _decision("rollback", _newest_day(decisions, last.day), last.version, last.fingerprint, login(), reason)


def hold(decisions: Sequence[Decision], reason: str) -> Decision:
    """A person freezes promotion: no night promotes until it is released.

    Raises:
        SgrecError: it is held already.
    """
    stands = held(decisions)
    if stands is not None:
        raise SgrecError(f"promotion is {stands}")
    return _decision("hold", _today(), None, None, login(), reason)


def release(decisions: Sequence[Decision], reason: str) -> Decision:
    """A person lifts the hold.

    Raises:
        SgrecError: nothing is held.
    """
    if held(decisions) is None:
        before = last_hold_or_release(decisions)
        raise SgrecError("promotion is not held" + (f": {before}" if before else ": nobody ever held it"))
    return _decision("release", _today(), None, None, login(), reason)


def accept(decisions: Sequence[Decision], day: str, figures: Sequence[str], reason: str) -> Decision | None:
    """A person says that ``figures``, which night ``day`` measured, are right."""
    if {(day, figure) for figure in figures} <= accepted(decisions):
        return None
    return _decision("accept", day, None, FIGURES_APART.join(figures), login(), reason)


def accepted(decisions: Sequence[Decision]) -> set[tuple[str, str]]:
    """Days and their figures of which a person said so."""
    return {
        (decision.day, figure)
        for decision in decisions
        if decision.action == "accept"
        for figure in (decision.fingerprint or "").split(FIGURES_APART)
    }


def _newest_day(decisions: Sequence[Decision], at_least: str) -> str:
    """The day that a person decides as of: no night so far meets the decision, every later one does."""
    nights = (decision.day for decision in decisions if decision.action in ("promote", "rollback", "pin"))
    return max([at_least, *nights])


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _decision(
    action: Action, day: str, version: str | None, fingerprint: str | None, who: str, reason: str
) -> Decision:
    return Decision(
        action=action, day=day, model=GENERATOR, version=version, fingerprint=fingerprint, who=who, reason=reason
    )


class Promotions:
    """The table in ``lake``."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake

    def rows(self, version: int | None = None) -> pa.Table:
        """The history as people read it, the oldest first."""
        return self._lake.read(TABLE, version=version)

    def read(self, version: int | None = None) -> list[Decision]:
        """All decisions, the oldest first."""
        delta = self._lake.open(TABLE, version)
        if delta is None:
            return []
        check_age(load_contract(TABLE), delta)
        names = ", ".join(f'"{one.name}"' for one in fields(Decision))
        found = QueryBuilder().register("decisions", delta).execute(f"SELECT {names} FROM decisions ORDER BY sequence")
        # Not `Lake.read`: Arrow's dataset imports pandas, which takes longer than all that `sgrec status` does.
        rows = pa.RecordBatchReader.from_stream(found).read_all().to_pylist()
        return [Decision(**{**row, "day": row["day"].isoformat()}) for row in rows]

    def decide(self, choose: Callable[[list[Decision]], Decision | None]) -> Decision | None:
        """Commit what ``choose`` makes of the decisions so far; nothing where it makes nothing.

        Another writer that comes first makes it choose again.

        Raises:
            SgrecError: other writers came first `TRIES` times.
        """
        for _ in range(TRIES):
            try:
                version = self._lake.create(TABLE).version()
            except CommitFailedError:  # another writer makes the table at this moment
                continue
            decisions = self.read(version)
            decision = choose(decisions)
            if decision is None:
                return None
            row = {
                **asdict(decision),
                "day": date.fromisoformat(decision.day),
                "sequence": len(decisions) + 1,
                "decided_at": datetime.now(UTC),
            }
            rows = pa.Table.from_pylist([row], schema=load_contract(TABLE).arrow_schema)
            if self._lake.write_after(TABLE, rows, version, "append"):
                return decision
        raise SgrecError(f"table {TABLE}: other writers came first {TRIES} times; try again")


def login() -> str:
    """Who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"user {os.getuid()}"
