"""Incidents: what several nights that are not green for one cause have in common, from the first to the one after.

A cause is the same while its kind, owner and table are, and goes on in the nights that learn from an amber one. What a
night, a person or the sender of messages makes of the incidents so far is a pure function; the table holds a row an
incident, and each change is one commit.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, date, datetime
from typing import Any, cast

import pyarrow as pa
from deltalake.exceptions import CommitFailedError

from sgrec_core.errors import SgrecError
from sgrec_core.lake import Lake, load_contract
from sgrec_core.lake.queries import ask
from sgrec_core.lake.tables import TRIES
from sgrec_core.quality.alarms import AMBER, GREEN

TABLE = "incidents"
LATE = "late"
"""Kind of a night that did not end in time, and verdict of one that has not."""
CRITICAL, WARNING = "critical", "warning"
LEARNS = "learns_from_amber"
"""Kind of a night that is amber for an earlier one."""


@dataclass(frozen=True, kw_only=True)
class Met:
    """What a night met."""

    day: str
    verdict: str
    """``green``, ``amber``, ``red`` or ``late``; of a green one nothing below counts."""
    kind: str = ""
    cause: str = ""
    """In a sentence."""
    cause_table: str | None = None
    owner: str = ""
    command: str = ""
    of_day: str | None = None
    """The earlier day whose fault it is, where it is one's."""
    last_good: str | None = None
    """The newest earlier night that was green or amber."""

    @property
    def severity(self) -> str:
        return WARNING if self.verdict == AMBER else CRITICAL


def met_by(summary: dict[str, Any]) -> Met:
    """What a night's summary says (`sgrec_core.quality.report.summary_of_night`)."""
    cause = summary["cause"] or {}
    return Met(
        day=summary["day"],
        verdict=summary["verdict"],
        kind=cause.get("kind") or "unknown",
        cause=cause.get("reason") or f"night {summary['day']} is {summary['verdict']}",
        cause_table=cause.get("table"),
        owner=cause.get("owner") or load_contract(TABLE).owner,
        command=cause.get("command") or "sgrec status",
        of_day=cause.get("day"),
    )


@dataclass(frozen=True, kw_only=True)
class Incident:
    """A row of the table; its contract says what the columns are."""

    incident: int
    opened: datetime
    kind: str
    cause: str
    cause_table: str | None
    owner: str
    severity: str
    command: str
    first_night: str
    last_night: str
    nights: int
    last_good: str | None
    acknowledged_at: datetime | None = None
    acknowledged_by: str | None = None
    acknowledged_why: str | None = None
    resolved_at: datetime | None = None
    resolved_by: str | None = None
    resolved_why: str | None = None
    told: tuple[str, ...] = ()
    told_over: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def is_open(self) -> bool:
        return self.resolved_at is None

    @property
    def is_over_by_night(self) -> bool:
        """Whether a night was well again, and no person said that it is over."""
        return self.resolved_by is not None and self.resolved_by.startswith(_NIGHT)

    def as_json(self) -> dict[str, Any]:
        """For machines: what `sgrec status --json` lists."""
        names = ("incident", "kind", "cause", "owner", "severity", "first_night", "last_night", "nights")
        acknowledged = self.acknowledged_at and {
            "by": self.acknowledged_by,
            "at": self.acknowledged_at.isoformat(),
            "why": self.acknowledged_why,
        }
        told = {name: getattr(self, name) for name in names}
        opened = self.opened.isoformat()
        return {**told, "opened": opened, "acknowledged": acknowledged, "problems": list(self.problems)}

    def __str__(self) -> str:
        nights = self.first_night if self.nights == 1 else f"{self.first_night} to {self.last_night}"
        return f"incident {self.incident} ({self.kind}, {self.owner}; {nights}): {self.cause}"


_NIGHT = "night "


def after_night(incidents: Sequence[Incident], met: Met) -> list[Incident]:
    """What a night makes of the incidents so far; the same night once more makes nothing new of them."""
    same = [one for one in incidents if _is_same(one, met)]
    goes_on = next((one for one in same if one.is_open), None)
    over = [one for one in incidents if one is not goes_on and _is_over(one, met)]
    kept = [_resolved(one, f"{_NIGHT}{met.day}", met.verdict) if one in over else one for one in incidents]
    if met.verdict == GREEN:
        return kept
    if goes_on is not None:
        return [_going_on(one, met) if one is goes_on else one for one in kept]
    if any(not one.is_open and not one.is_over_by_night and met.day <= one.last_night for one in same):
        return kept  # a person has closed it, and no later night has met it
    return [*kept, _new(len(incidents) + 1, met)]


def _is_same(incident: Incident, met: Met) -> bool:
    if met.verdict == GREEN or (met.severity == CRITICAL and incident.severity == WARNING):
        return False  # what begins to stop nights is news
    is_of_its_day = met.of_day is not None and incident.first_night <= met.of_day <= incident.last_night
    if met.kind == LEARNS and is_of_its_day and incident.severity == WARNING:
        return True
    return (incident.kind, incident.owner, incident.cause_table) == (met.kind, met.owner, met.cause_table)


def _is_over(incident: Incident, met: Met) -> bool:
    """Whether the night tells that the incident is over: an older one does not, nor one with a verdict no better."""
    if not incident.is_open or met.day < incident.last_night:
        return False
    if met.verdict == GREEN or incident.kind == LATE:
        return True  # what is late goes on while the next is late, and ends in whatever way
    return met.verdict == AMBER and incident.severity == CRITICAL


def _resolved(incident: Incident, by: str, why: str) -> Incident:
    return replace(incident, resolved_at=_now(), resolved_by=by, resolved_why=why, problems=())


def _going_on(incident: Incident, met: Met) -> Incident:
    is_new = not incident.first_night <= met.day <= incident.last_night
    moved = replace(
        incident,
        first_night=min(incident.first_night, met.day),
        last_night=max(incident.last_night, met.day),
        nights=incident.nights + is_new,
    )
    if met.day < incident.last_night or met.kind != incident.kind:
        return moved
    return replace(moved, cause=met.cause, command=met.command)


def _new(number: int, met: Met) -> Incident:
    return Incident(
        incident=number,
        opened=_now(),
        kind=met.kind,
        cause=met.cause,
        cause_table=met.cause_table,
        owner=met.owner,
        severity=met.severity,
        command=met.command,
        first_night=met.day,
        last_night=met.day,
        nights=1,
        last_good=met.last_good,
    )


# What people say


def acknowledge(incidents: Sequence[Incident], number: int, who: str, reason: str) -> list[Incident]:
    """Somebody knows: nothing more is told while it goes on.

    Raises:
        SgrecError: there is no such incident, it is over, or somebody knows already.
    """
    one = _open(incidents, number)
    if one.acknowledged_at is not None:
        raise SgrecError(f"incident {number} is acknowledged by {one.acknowledged_by}: {one.acknowledged_why}")
    why = _line(reason)
    return _with(
        incidents, replace(one, acknowledged_at=_now(), acknowledged_by=who, acknowledged_why=why, problems=())
    )


def resolve(incidents: Sequence[Incident], number: int, who: str, reason: str) -> list[Incident]:
    """It is over: the same cause in a later night opens another.

    Raises:
        SgrecError: there is no such incident, or it is over.
    """
    return _with(incidents, _resolved(_open(incidents, number), who, _line(reason)))


def _open(incidents: Sequence[Incident], number: int) -> Incident:
    one = next((one for one in incidents if one.incident == number), None)
    if one is None:
        raise SgrecError(f"there is no incident {number}; `sgrec incidents` lists those that are open")
    if not one.is_open:
        raise SgrecError(f"incident {number} is over, by {one.resolved_by}: {one.resolved_why}")
    return one


# What is told


@dataclass(frozen=True)
class Due:
    """A message that ``destination`` has not had."""

    incident: Incident
    destination: str
    is_over: bool


def due(incidents: Sequence[Incident], destinations: Sequence[str]) -> list[Due]:
    """One message an incident that is open and nobody knows of, one when a night is well again."""
    messages = []
    for one in incidents:
        for name in destinations:
            if one.is_open and one.acknowledged_at is None and name not in one.told:
                messages.append(Due(one, name, is_over=False))
            if one.is_over_by_night and name in one.told and name not in one.told_over:
                messages.append(Due(one, name, is_over=True))
    return messages


def after_message(incidents: Sequence[Incident], message: Due, problem: str | None) -> list[Incident]:
    """It was sent, or was not: ``problem``."""
    one = next(one for one in incidents if one.incident == message.incident.incident)
    of = f"{message.destination}: "
    problems = tuple(before for before in one.problems if not before.startswith(of))
    if problem is not None:
        return _with(incidents, replace(one, problems=(*problems, f"{of}{problem}")))
    one = replace(one, problems=problems)
    if message.is_over:
        return _with(incidents, replace(one, told_over=(*one.told_over, message.destination)))
    return _with(incidents, replace(one, told=(*one.told, message.destination)))


def _with(incidents: Sequence[Incident], changed: Incident) -> list[Incident]:
    return [changed if one.incident == changed.incident else one for one in incidents]


def _now() -> datetime:
    return datetime.now(UTC)


def _line(reason: str) -> str:
    return " ".join(reason.split())


_DAYS = ("first_night", "last_night", "last_good")


class Incidents:
    """The table in ``lake``."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake

    def read(self) -> list[Incident]:
        """All incidents, the first first; none in a home that has no such table yet."""
        names = ", ".join(f'"{one.name}"' for one in fields(Incident))
        rows = ask(self._lake, TABLE, f"SELECT {names} FROM rows ORDER BY incident")
        return [_of_row(row) for row in rows]

    def change(self, choose: Callable[[list[Incident]], list[Incident]]) -> list[Incident]:
        """Commit what ``choose`` makes of the incidents so far, and return it; nothing where it changes nothing.

        Another writer that comes first makes it choose again.

        Raises:
            SgrecError: other writers came first `TRIES` times.
        """
        for _ in range(TRIES):
            before = self.read()
            after = choose(before)
            if after == before:
                return after
            try:
                version = self._lake.create(TABLE).version()
            except CommitFailedError:  # another writer makes the table at this moment
                continue
            if self.read() != before:  # another came between; from here on the commit notices it
                continue
            rows = pa.Table.from_pylist([_row(one) for one in after], schema=load_contract(TABLE).arrow_schema)
            if self._lake.write_after(TABLE, rows, version, "overwrite"):
                return after
        raise SgrecError(f"table {TABLE}: other writers came first {TRIES} times; try again")


def _row(incident: Incident) -> dict[str, Any]:
    row = asdict(incident)
    return {**row, **{name: row[name] and date.fromisoformat(row[name]) for name in _DAYS}}


def _of_row(row: dict[str, Any]) -> Incident:
    days = {name: row[name] and row[name].isoformat() for name in _DAYS}
    lists = {name: tuple(row[name]) for name in ("told", "told_over", "problems")}
    return Incident(**cast(dict[str, Any], {**row, **days, **lists}))
