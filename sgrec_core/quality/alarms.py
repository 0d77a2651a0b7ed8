"""Metrics of a night that lie out of the band of their past: what holds promotion back, or is told.

They are rows of ``night_metrics``, which the gates write (`sgrec_core.quality.night_metrics`).
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass

from sgrec_core.lake import Lake
from sgrec_core.wording import out_of_band

TABLE = "night_metrics"
GREEN, AMBER, RED = "green", "amber", "red"
EXIT_CODES = {GREEN: 0, AMBER: 4, RED: 1}
"""Of a night by its verdict."""
TOLD = ("metric", "dimension", "value", "low", "high", "how", "severity")
"""What a night's summary keeps of an alarm."""


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """A row of the table whose status is ``out``, of a night that nobody has accepted."""

    day: str
    stage: str
    metric: str
    dimension: str
    place: int
    """Among the declared figures: causes stand before what follows from them."""
    value: float
    low: float
    high: float
    how: str
    severity: str

    @property
    def name(self) -> str:
        return f"{self.metric} {self.dimension}".strip()

    def __str__(self) -> str:
        return f"{out_of_band(self.name, self.value, self.low, self.high)} ({self.how})"


def alarms(lake: Lake, day: str, *, stages: Container[str]) -> list[Alarm]:
    """Those of ``day`` behind ``stages``, critical ones first, causes before what follows from them."""
    return alarms_of_days(lake, [day], stages=stages)


def alarms_of_days(lake: Lake, days: Sequence[str], *, stages: Container[str]) -> list[Alarm]:
    """Those of several days that nobody has accepted; see `alarms`."""
    columns = ["day", "stage", "metric", "dimension", "place", "value", "low", "high", "how", "severity", "status"]
    rows = lake.read(TABLE, where={"day": list(days)}, columns=columns).to_pylist()
    found = [
        Alarm(**{**row, "day": row["day"].isoformat()})
        for row in rows
        if row.pop("status") == "out" and row["stage"] in stages
    ]
    if found:
        known = accepted_nights(lake)
        found = [alarm for alarm in found if alarm.day not in known]
    return sorted(found, key=lambda alarm: (alarm.severity != "critical", alarm.place))


def accepted_nights(lake: Lake) -> set[str]:
    """Nights of which a person said that what they measured is right."""
    from sgrec_core.registry.promotions import Promotions, accepted  # imports torch; most nights have no alarm

    return accepted(Promotions(lake).read())


def verdict(succeeded: bool, found: Sequence[Alarm]) -> str:
    """Of a night: ``green``, ``amber`` (published, but a critical metric is out of its band) or ``red`` (stopped)."""
    if not succeeded:
        return RED
    return AMBER if any(alarm.severity == "critical" for alarm in found) else GREEN


def critical_in_words(found: Sequence[Alarm]) -> str | None:
    """The first critical one, and how many more there are; None where there is none."""
    critical = [alarm for alarm in found if alarm.severity == "critical"]
    if not critical:
        return None
    others = f"; {len(critical) - 1} more critical out of their bands" if len(critical) > 1 else ""
    return f"{critical[0]}{others}"
