"""Where a night's figure should lie, by the nights before it: pure functions.

A band is the median of the past, give or take the largest of three: what the counts behind the figures do by chance,
a declared floor, and how far the past itself spreads. It can be told from one earlier night on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from statistics import NormalDist, median

from sgrec_core.wording import number

ROBUST = 1.4826
"""Median absolute deviations in a standard deviation, of normal values."""
FEW = 4
"""Values from which on a spread, or a weekday, tells something."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A value and how sure its own counts are of it."""

    value: float
    error: float
    """Standard error."""
    size: float | None = None
    """What a share or a quantile was counted over: with less the next one is less sure. None of a count."""


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """How far a figure may lie off its past, whatever the counts say."""

    deviations: float
    """Of chance, both sides; see `deviations`."""
    relative: float = 0.0
    """Floor as a part of the median."""
    points: float = 0.0
    """Floor in units of the value."""
    spread: float = 5.0
    """Robust standard deviations of the past."""
    least: float = 0.0
    """No value lies below it."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """Where a value should lie."""

    low: float
    high: float
    how: str

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


def deviations(false_alarms: float, figures: int) -> float:
    """Normal deviations that one of ``figures`` may lie off, so that of clean nights ``false_alarms`` have any alarm.

    One budget for all (Bonferroni): whatever depends on what, no more nights have an alarm of chance.
    """
    return NormalDist().inv_cdf(1 - false_alarms / figures / 2)


def chance(past: Sequence[Figure], size: float | None) -> float:
    """Standard deviation, by the counts, of the next value, of ``size``, minus the median of ``past``."""
    errors = [figure.error for figure in past]
    if size is None:
        of_next = median(errors)
    else:
        of_next = median(figure.error * (figure.size or size) ** 0.5 for figure in past) / size**0.5
    return float((of_next**2 + median(errors) ** 2 / len(past)) ** 0.5)


def band(past: Sequence[Figure], allowed: Allowed, *, size: float | None = None, of: str = "") -> Band | None:
    """Where the next value should lie; None without a past.

    Args:
        size: what the next value is counted over.
        of: which nights these are, in words, where they are chosen.
    """
    if not past:
        return None
    values = [figure.value for figure in past]
    middle = median(values)
    widths = {
        "declared floor": max(allowed.relative * abs(middle), allowed.points),
        "chance of the counts": allowed.deviations * chance(past, size),
    }
    if len(past) >= FEW:
        off = median(abs(value - middle) for value in values)
        widths["spread of the past"] = allowed.spread * ROBUST * off
    name, width = max(widths.items(), key=lambda item: item[1])
    nights = f"{len(past)} earlier night{'s' if len(past) > 1 else ''}{of}"
    how = f"{number(float(middle))}, median of {nights}, give or take {number(float(width))}: {name}"
    return Band(low=max(allowed.least, middle - width), high=middle + width, how=how)


def same_weekday(past: Sequence[tuple[str, Figure]], day: str) -> tuple[list[Figure], str]:
    """Of figures by their days those of ``day``'s weekday where there are enough, else all; and which, in words."""
    weekday = date.fromisoformat(day).weekday()
    same = [figure for when, figure in past if date.fromisoformat(when).weekday() == weekday]
    if len(same) >= FEW:
        return same, " of the same weekday"
    return [figure for _, figure in past], ""
