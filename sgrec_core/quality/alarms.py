"""Metrics of a night that lie out of the band of their past: what holds promotion back, or is told.

They are rows of ``night_metrics``, which the gates write (`sgrec_core.quality.night_metrics`).
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass

from sgrec_core.lake import Lake
from sgrec_core.lake.queries import ask, days_until
from sgrec_core.runtime.stages import BY_NAME
from sgrec_core.settings import Settings
from sgrec_core.wording import out_of_band

TABLE = "night_metrics"
GREEN, AMBER, RED = "green", "amber", "red"
EXIT_CODES = {GREEN: 0, AMBER: 4, RED: 1}
"""Of a night by its verdict."""
TOLD = ("metric", "dimension", "value", "low", "high", "how", "severity")
"""What a night's summary keeps of an alarm."""


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """A row of the table whose status is ``out``, of a figure that nobody has accepted."""

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

    @property
    def figure(self) -> str:
        """What a person accepts: this value and no other."""
        return figure(self.metric, self.dimension, self.value)

    def __str__(self) -> str:
        return f"{out_of_band(self.name, self.value, self.low, self.high)} ({self.how})"


def alarms(lake: Lake, day: str, *, stages: Container[str]) -> list[Alarm]:
    """Those of ``day`` behind ``stages``, critical ones first, causes before what follows from them."""
    return alarms_of_days(lake, [day], stages=stages)


def alarms_of_days(lake: Lake, days: Sequence[str], *, stages: Container[str]) -> list[Alarm]:
    """Those of several days that nobody has accepted; see `alarms`."""
    if not days:
        return []
    question = f"""
        SELECT CAST(day AS VARCHAR) AS day, stage, metric, dimension, place, value, low, high, how, severity FROM rows
        WHERE status = 'out' AND day >= '{min(days)}' AND day <= '{max(days)}'
    """
    rows = ask(lake, TABLE, question)
    found = [Alarm(**row) for row in rows if row["stage"] in stages and row["day"] in days]
    if found:
        known = accepted_figures(lake)
        found = [alarm for alarm in found if (alarm.day, alarm.figure) not in known]
    return sorted(found, key=lambda alarm: (alarm.severity != "critical", alarm.place, alarm.day))


def inherited_alarms(lake: Lake, settings: Settings, day: str) -> list[Alarm]:
    """Critical ones of the days before ``day`` that its night learns from, the oldest day first.

    What such a day holds is among the histories, decisions and clicks that models of ``day`` are fitted to.
    """
    days = days_until(day, max(settings.states.history_days, settings.business.window_days))[:-1]
    found = [alarm for alarm in alarms_of_days(lake, days, stages=BY_NAME) if alarm.severity == "critical"]
    return sorted(found, key=lambda alarm: alarm.day)


def figure(metric: str, dimension: str, value: float) -> str:
    """A measured figure as an acceptance names it."""
    return f"{metric} {dimension}".strip() + f"={value!r}"


def accepted_figures(lake: Lake) -> set[tuple[str, str]]:
    """Day and `figure` of what a person said is right."""
    from sgrec_core.registry.promotions import Promotions, accepted  # imports torch; most nights have no alarm

    return accepted(Promotions(lake).read())


def verdict(succeeded: bool, found: Sequence[Alarm]) -> str:
    """``green``, ``amber`` (published, but a critical metric is out of its band) or ``red`` (stopped).

    ``found``: those of the night, and of the days that it learns from.
    """
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


def inherited_in_words(inherited: Sequence[Alarm]) -> str | None:
    """Which amber days a night learns from, and what the first is amber for; None where there is none."""
    if not inherited:
        return None
    first, *others = dict.fromkeys(alarm.day for alarm in inherited)
    of_first = critical_in_words([alarm for alarm in inherited if alarm.day == first])
    more = f"; so {'are' if len(others) > 1 else 'is'} {', '.join(others)}" if others else ""
    mend = f"mend or accept {'these days' if others else 'that day'}"
    return f"learns from {first}, which is amber: {of_first}{more}; {mend}"


def held_in_words(own: Sequence[Alarm], inherited: Sequence[Alarm]) -> str | None:
    """What holds the promotion of a night: its own critical metrics, then those of days that it learns from."""
    found = [words for words in (critical_in_words(own), inherited_in_words(inherited)) if words]
    return "; it also ".join(found) if found else None
