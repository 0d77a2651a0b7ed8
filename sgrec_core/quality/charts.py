"""The metrics of 30 days as small charts: the values, over the band that each day's past allowed it.

Drawn as inline SVG by a few lines of template. 30 pages have 1,080 of them: 4 s, and half a megabyte a page, with pygal
(3.5 ms and 15 kB each), 6 s with matplotlib (5.5 ms and 3.6 kB, in colours that do not follow the reader's).
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Any

from sgrec_core.lake import Lake
from sgrec_core.lake.queries import ask, days_until
from sgrec_core.quality.alarms import TABLE
from sgrec_core.quality.night_metrics import declared
from sgrec_core.wording import number

DAYS = 30
WIDTH, HEIGHT, MARGIN = 150, 36, 3
"""Of a chart, in its own units; the margin leaves room for a dot."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A metric on one day."""

    day: str
    value: float
    low: float | None
    high: float | None
    status: str
    """``in``, ``out`` or ``no band``."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """A metric over the days that have it, the oldest first."""

    metric: str
    dimension: str
    severity: str
    points: list[Point]
    last: str
    """The day that the chart ends with."""

    @property
    def name(self) -> str:
        return f"{self.metric} {self.dimension}".strip()

    @property
    def description(self) -> str:
        metric = declared().metrics.get(self.metric)
        return metric.description if metric else ""

    @property
    def now(self) -> Point | None:
        """That of the night itself; None where it was not measured."""
        return self.points[-1] if self.points[-1].day == self.last else None

    @property
    def in_words(self) -> str:
        """For who does not see the chart."""
        values = [point.value for point in self.points]
        out = [point.day for point in self.points if point.status == "out"]
        said = f"{self.name}, {len(values)} of {DAYS} days: {number(min(values))} to {number(max(values))}"
        return f"{said}; out of its band on {', '.join(out)}" if out else f"{said}; never out of its band"

    @property
    def drawing(self) -> dict[str, Any]:
        """``line`` and ``band`` as points of SVG; ``dots`` (x, y, whether out): the newest, and all that are out."""
        ends = [end for point in self.points for end in (point.value, point.low, point.high) if end is not None]
        lowest, highest = min(ends), max(ends)
        begin = _ordinal(self.last) - DAYS + 1

        def x(point: Point) -> float:
            place = _ordinal(point.day) - begin
            return round(MARGIN + place * (WIDTH - 2 * MARGIN) / (DAYS - 1), 1)

        def y(value: float) -> float:
            share = (value - lowest) / (highest - lowest) if highest > lowest else 0.5
            return round(HEIGHT - MARGIN - share * (HEIGHT - 2 * MARGIN), 1)

        banded = [point for point in self.points if point.low is not None and point.high is not None]
        over = [(x(point), y(point.high)) for point in banded if point.high is not None]
        under = [(x(point), y(point.low)) for point in reversed(banded) if point.low is not None]
        shown = [point for point in self.points if point.status == "out" or point is self.points[-1]]
        return {
            "line": _points((x(point), y(point.value)) for point in self.points),
            "band": _points([*over, *under]),
            "dots": [(x(point), y(point.value), point.status == "out") for point in shown],
        }


def read_series(lake: Lake, day: str, *, stages: Container[str]) -> list[Series]:
    """All metrics of the 30 days up to ``day``, in their declared order.

    Args:
        stages: those whose gates have measured ``day``; what others left of it is from an earlier run.
    """
    question = f"""
        SELECT CAST(day AS VARCHAR) AS day, stage, metric, dimension, place, value, low, high, severity, status
        FROM rows WHERE day >= '{days_until(day, DAYS)[0]}' AND day <= '{day}' ORDER BY place, metric, dimension, day
    """
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in ask(lake, TABLE, question):
        if row["day"] != day or row["stage"] in stages:
            found.setdefault((row["metric"], row["dimension"]), []).append(row)
    names = ("day", "value", "low", "high", "status")
    return [
        Series(
            metric=metric,
            dimension=dimension,
            severity=rows[-1]["severity"],
            points=[Point(**{name: row[name] for name in names}) for row in rows],
            last=day,
        )
        for (metric, dimension), rows in found.items()
    ]


@cache
def _ordinal(day: str) -> int:
    return date.fromisoformat(day).toordinal()


def _points(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in places)
