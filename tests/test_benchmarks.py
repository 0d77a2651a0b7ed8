"""Benchmarks follow the names of what they measure; none of them runs in the tests, but their arithmetic does."""

import importlib
import pkgutil

import numpy as np
import pyarrow as pa
import pytest

import benchmarks
from benchmarks import gate_clipping
from benchmarks.gate_months import (
    EACH_NIGHT,
    HELD,
    NIGHTS,
    WHOLE_NIGHT,
    Month,
    Panel,
    draw_month,
    first_night,
    loading,
    nights_of,
    turned,
    wilson,
)
from benchmarks.gate_nights import Power, clear, close_to_best, correlations, rank_correlations, why_not
from benchmarks.gate_requests import Recommended
from sgrec_core.evaluation.gate import Evidence
from sgrec_core.evaluation.score import Weights
from sgrec_core.evaluation.simulated_ab import Outcomes
from sgrec_core.generator.dataset import Catalogue
from sgrec_core.night.evaluation import evidence_by_night

NDCG = Weights(ndcg=1.0, ecpm=0.0, gmv=0.0, dislikes=0.0)
BOTH = Weights(ndcg=1.0, ecpm=0.5, gmv=0.0, dislikes=0.0)


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(benchmarks.__path__)])
def test_a_benchmark_imports_what_it_measures(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")


def panel(weights: Weights = NDCG, users: int = 3000, days: int = 3, absent: float = 0.2) -> Panel:
    """Figures of two generators that differ, some users missing on some days, some without a decision."""
    draw = np.random.default_rng(1)
    gone, undecided = draw.random((days, users)) < absent, draw.random((days, users)) < absent
    sides = []
    for _ in range(2):
        ndcg = np.where(draw.random((days, users)) < 0.3, draw.random((days, users)), 0.0)
        ecpm = draw.gamma(2.0, 100.0, (days, users))
        sides.append({"ndcg": np.where(gone | undecided, np.nan, ndcg)})
        if weights.ecpm:
            sides[-1]["ecpm"] = np.where(gone, np.nan, ecpm)
    return Panel(*sides, weights)


@pytest.mark.parametrize("weights", [NDCG, BOTH])
@pytest.mark.parametrize("coin", [EACH_NIGHT, HELD])
@pytest.mark.parametrize("effect", [0.0, 0.1, -0.1])
def test_a_coin_makes_the_optimised_policy_as_much_better_as_was_asked_for(
    weights: Weights, coin: str, effect: float
) -> None:
    lists = panel(weights)
    month = draw_month(lists, 10_000, effect, coin, np.random.default_rng(2))
    day = month.days[0]
    ours, theirs = (side["ndcg"][day, month.users] for side in (lists.ours, lists.theirs))
    swapped = month.swapped[0]
    optimised, supervised = np.where(swapped, theirs, ours), np.where(swapped, ours, theirs)
    assert np.nanmean(optimised + supervised) == pytest.approx(np.nanmean(ours + theirs))
    nights = nights_of(lists, month)
    found = float(np.mean([scores.mean() for _, scores in nights])) / np.nanmean(supervised)
    assert found == pytest.approx(effect, abs=0.035)


def test_a_coin_for_the_whole_night_swaps_all_users_or_none() -> None:
    month = draw_month(panel(), 50, 0.0, WHOLE_NIGHT, np.random.default_rng(3))
    assert set(month.swapped.mean(axis=1).tolist()) == {0.0, 1.0}


def test_swapping_changes_signs_alone_and_leaves_out_who_is_not_there() -> None:
    lists = Panel({"ndcg": np.array([[0.5, np.nan, 0.2]])}, {"ndcg": np.array([[0.1, np.nan, 0.3]])}, NDCG)
    swapped = np.array([[False, True, True], [True, False, False]])
    nights = nights_of(lists, Month(np.array([0, 1, 2]), np.zeros(2, dtype=int), swapped))
    assert [users.tolist() for users, _ in nights] == [[0, 2], [0, 2]]
    np.testing.assert_allclose([differences for _, differences in nights], [[0.4, 0.1], [-0.4, -0.1]])


def test_what_turns_is_as_much_worse_as_it_was_better() -> None:
    lists = panel()
    month = draw_month(lists, 500, 0.2, EACH_NIGHT, np.random.default_rng(5))
    before, after = nights_of(lists, month), nights_of(lists, turned(month, 10))
    for number, (one, other) in enumerate(zip(before, after, strict=True)):
        np.testing.assert_allclose(one[1], other[1] if number < 10 else -other[1])


def test_no_coin_makes_more_of_two_lists_than_they_differ() -> None:
    alike = Panel({"ndcg": np.array([[0.5, 0.5]])}, {"ndcg": np.array([[0.5, 0.49]])}, NDCG)
    with pytest.raises(ValueError, match="more than these lists differ"):
        loading(alike, 0.2, EACH_NIGHT)
    assert loading(alike, 0.0, EACH_NIGHT) == 0


def test_a_month_in_which_every_night_promotes_none_does_or_the_fifth_does() -> None:
    def month(value: float) -> list[Evidence]:
        return [Evidence(nights=n + 1, users=9, mean=0.01, value=value, against=0.1, needed=20) for n in range(NIGHTS)]

    assert first_night(month(25), lambda night: True) == 1
    assert first_night(month(25), lambda night: night >= 4) == 5
    assert first_night(month(25), lambda night: False) == 0
    assert first_night(month(2), lambda night: True) == 0


def test_planted_evidence_is_found_on_the_night_that_has_it() -> None:
    users = np.arange(400)
    better, nothing = np.full(400, 0.2), np.where(users % 2, 0.2, -0.2)
    found = evidence_by_night([(users, nothing), *[(users, better)] * 3], alpha=0.05)
    assert [one.is_enough for one in found] == [False, True, True, True]
    worse = evidence_by_night([(users, -better)] * 4, alpha=0.05)
    assert not any(one.is_enough for one in worse)
    assert worse[0].against > 20


def test_a_truth_is_clear_above_twice_what_the_night_detects() -> None:
    truth, detectable = np.array([0.3, -0.3, 0.1, 0.2]), np.array([0.1, 0.1, 0.1, 0.1])
    assert clear(truth, detectable).tolist() == [True, True, False, False]


def test_power_of_users_and_nights() -> None:
    draw = np.random.default_rng(4)
    found = Power.of(draw.normal(0, 0.1, 4000) + draw.normal(0, 0.1, (4, 4000)), 0.2)
    assert found.deviation == pytest.approx(0.02**0.5, rel=0.02)
    assert found.lasting == pytest.approx(0.5, abs=0.03)
    users = found.users_for(0.05)
    assert found.detectable(users) <= 0.05 < found.detectable(users - 1)
    assert found.nights_for(0.05, users) == 1
    # Half of the variance stays however many nights there are.
    assert found.nights_for(0.05, int(users * 0.4)) == float("inf")
    assert found.detectable(1000, nights=10**9) == pytest.approx(found.detectable(2000), rel=0.05)


def test_rank_correlations_by_hand() -> None:
    order = np.array([1.0, 2, 3, 4])
    assert [float(one) for one in rank_correlations(order, order * 7)] == [1, 1]
    assert [float(one) for one in rank_correlations(order, -order)] == [-1, -1]
    assert [float(one) for one in rank_correlations(order, np.array([2.0, 1, 3, 4]))] == pytest.approx([0.8, 2 / 3])


def test_correlations_leave_out_who_was_not_there() -> None:
    level = np.array([0.1, 0.2, 0.3])[:, None]
    values = np.tile(level, (1, 50))
    values[:, ::2] = np.nan
    spearman, kendall = correlations(values, np.tile(level, (1, 50)), np.ones((3, 50)), resamples=20)
    assert (spearman.value, spearman.lower, kendall.upper) == (1, 1, 1)


def test_close_to_best_knows_what_better_means() -> None:
    assert close_to_best(np.array([1.0, 0.96, 0.9]), "CTR").tolist() == [0, 1]
    assert close_to_best(np.array([1.0, 0.96, 0.9]), "dislike rate").tolist() == [2]


def test_wilson_by_the_book() -> None:
    found = wilson(30, 30)
    assert (found.value, found.upper) == (1, 1)
    assert found.lower == pytest.approx(0.8865, abs=1e-4)
    assert np.isnan(wilson(0, 0).value)


def test_refusals_are_told_apart() -> None:
    assert why_not("supervised policy better: NDCG@10") == ""
    assert why_not("supervised policy not: not better: NDCG@10 .1") == "not better"
    assert why_not("supervised policy not: better, but not surely: NDCG") == "better, but not surely"
    assert why_not("supervised policy not: hit_rate@50 surely worse: -0.1") == "@50 surely worse"


def small_market() -> Recommended:
    """Two users, two days; generator a shows item 0 first, b item 1; user 1 comes on the second day only."""
    day, user = np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1])
    shown = np.array([[0, 2], [1, 2], [0, 1], [1, 0]])
    clicked = np.array([[1, 0], [1, 0], [0, 0], [1, 0]])
    logged = {"shown": shown, "propensity": np.full((4, 2), 0.5), "reward:ecpm": 10.0 * clicked}
    logged["predicted:ecpm"] = np.full((4, 2), 5.0)
    lists = {"a": np.tile([0, 1, 2], (4, 1)), "b": np.tile([1, 0, 2], (4, 1))}
    zeros = np.zeros(2)
    return Recommended(
        day=day,
        user=user,
        histories=np.full((4, 1), 2),
        targets=np.array([0, 1, -1, 1]),
        logged=logged,
        catalogue=Catalogue(pa.array(["x", "y", "z"]), np.array([[0, 0], [0, 1], [1, 0]]), 2, "t"),
        items=lists,
        expected={name: {"ecpm": np.full((4, 2), 5.0)} for name in lists},
        truth={name: Outcomes(*[zeros] * 6) for name in lists},
        clip=50.0,
    )


def test_requests_of_users_who_are_drawn_twice_or_are_not_there() -> None:
    market = small_market()
    rows, slot = market.requests(0, np.array([1, 0, 0]))
    assert (rows.tolist(), slot.tolist()) == ([0, 1, 0, 1], [1, 1, 2, 2])
    rows, slot = market.requests(1, np.array([1, 0, 0]))
    assert (rows.tolist(), slot.tolist()) == ([3, 2, 2], [0, 1, 2])


def test_a_mixed_policy_answers_as_the_coin_says_and_is_worth_as_much() -> None:
    market = small_market()
    rows, slot = market.requests(1, np.array([1, 0, 0]))
    mixed = market.mixed("m", ("a", "b"), rows, slot, np.array([True, False, True]))
    assert mixed.items[:, 0].tolist() == [1]  # the one decision of that day, of user 1, who has b's lists
    assert mixed.worth is not None
    told = {name: market.figures[name]["ecpm doubly_robust"][1] for name in ("a", "b")}
    # Slots are user 1 with b's lists, user 0 with a's and user 0 with b's.
    np.testing.assert_allclose(
        mixed.worth.per_user["ecpm", "doubly_robust"], [told["b"][1], told["a"][0], told["b"][0]]
    )
    # a shows both logged items of request 2 at their places, with weights of 2: (5 + 2 * (0 - 5) + ...) / 2.
    assert told["a"][0] == pytest.approx(-5.0)
    assert told["b"][0] == pytest.approx(5.0)


def test_the_largest_weight_takes_from_the_mean_weight() -> None:
    found = {(one.clip, one.estimator): one for one in gate_clipping.estimates(small_market())}
    assert found[50.0, "doubly robust"].weight == found[None, "doubly robust"].weight
    assert found[None, "direct"].value.tolist() == [5.0, 5.0]
    assert len(found) == 1 + 3 * len(gate_clipping.CLIPS)
