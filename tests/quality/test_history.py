"""Bands: what the nights before say of the next figure."""

from dataclasses import replace
from datetime import date, timedelta
from statistics import NormalDist, median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgrec_core.quality.history import Allowed, Figure, band, deviations, same_weekday
from sgrec_core.quality.measures import TYPES
from sgrec_core.quality.night_metrics import declared

ALLOWED = Allowed(deviations=3.6, relative=0.1)
COUNTS = st.lists(st.integers(1, 10**6), min_size=1, max_size=28)


def figures(counts: list[int]) -> list[Figure]:
    return [Figure(value=count, error=count**0.5) for count in counts]


def test_without_a_past_there_is_no_band() -> None:
    assert band([], ALLOWED) is None


@given(COUNTS)
def test_a_band_holds_the_median_of_its_past_and_can_be_told_from_one_night(counts: list[int]) -> None:
    found = band(figures(counts), ALLOWED)
    assert found is not None
    assert found.holds(median(counts))
    assert found.low >= 0


@given(st.integers(1, 10**6), st.integers(2, 100))
def test_fewer_counts_make_a_wider_band(count: int, times: int) -> None:
    few, many = (band(figures([number]), replace(ALLOWED, relative=0)) for number in (count, count * times))
    assert few is not None
    assert many is not None
    assert few.high / count > many.high / (count * times)


@given(st.floats(0.01, 0.99), st.integers(10, 10**6), st.integers(2, 100))
def test_a_share_of_less_has_a_wider_band(share: float, size: int, times: int) -> None:
    past = [Figure(value=share, error=(share * (1 - share) / size) ** 0.5, size=size)]
    whole, part = (band(past, replace(ALLOWED, relative=0), size=of) for of in (size, size / times))
    assert whole is not None
    assert part is not None
    assert part.high > whole.high


@given(COUNTS, st.floats(0, 2))
def test_a_wider_floor_never_makes_a_narrower_band(counts: list[int], relative: float) -> None:
    floor, none = (band(figures(counts), replace(ALLOWED, relative=of)) for of in (relative, 0.0))
    assert floor is not None
    assert none is not None
    assert (floor.low, floor.high) <= (none.low, floor.high)
    assert floor.high >= none.high
    assert floor.high >= median(counts) * (1 + relative) * 0.999


@given(st.floats(0.0001, 0.2), st.integers(1, 500))
def test_the_figures_of_a_night_share_one_budget_of_false_alarms(budget: float, number: int) -> None:
    alone, shared = deviations(budget, 1), deviations(budget, number)
    assert shared >= alone
    # At most the sum of each one's, whatever depends on what.
    assert number * 2 * (1 - NormalDist().cdf(shared)) == pytest.approx(budget, rel=1e-3)


def test_one_bad_night_in_the_past_moves_a_band_little() -> None:
    clean, spoilt = (band(figures(counts), ALLOWED) for counts in ([1000] * 7, [1000] * 6 + [10]))
    assert clean is not None
    assert spoilt is not None
    assert (spoilt.low, spoilt.high) == pytest.approx((clean.low, clean.high), rel=0.01)


def test_a_past_that_grows_steadily_holds_its_next_day() -> None:
    for nights in range(2, 29):
        counts = [300 + 10 * night for night in range(nights)]
        found = band([Figure(value=count, error=0) for count in counts], ALLOWED)
        assert found is not None
        assert found.holds(300 + 10 * nights), nights


def test_a_weekday_goes_by_its_own_once_there_are_enough() -> None:
    days = [(date(2026, 1, 5) + timedelta(days=number)).isoformat() for number in range(28)]
    past = [(day, Figure(value=2.0 if number % 7 in (5, 6) else 1.0, error=0)) for number, day in enumerate(days)]
    sunday = "2026-02-01"
    assert same_weekday(past, sunday)[0] == [past[number][1] for number in (6, 13, 20, 27)]
    assert same_weekday(past[:20], sunday) == ([figure for _, figure in past[:20]], "")


def test_the_declaration_names_an_owner_and_says_what_each_metric_is() -> None:
    metrics = declared().metrics
    assert metrics["events"].dimensions == TYPES
    for metric in metrics.values():
        assert metric.owner
        assert metric.description
        assert metric.relative or metric.points, f"{metric.metric} has no floor"
