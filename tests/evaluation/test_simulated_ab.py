"""The simulated A/B test: the same users, the same luck, and slates that make the difference."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from sgrec_core import simulator
from sgrec_core.evaluation.significance import relative_difference
from sgrec_core.evaluation.simulated_ab import Arm, Outcomes, append, differences, pooled, serve
from sgrec_core.settings import SimulatorSettings

FIRST_DAY = "2026-01-05"
MARKET = SimulatorSettings(users=300, items=60, new_items_per_day=0, requests_per_user=4, slate=5)
EMPTY = np.full((MARKET.users, 4), -1)


def day(number: int = 0, trial: int = 0) -> Iterator[simulator.Requests]:
    return simulator.day_requests(MARKET, f"2026-01-{5 + number:02d}", FIRST_DAY, trial=trial)


def run(arm: Arm, trial: int = 0, days: int = 1, histories: np.ndarray = EMPTY) -> Outcomes:
    return serve(arm, (day(number, trial) for number in range(days)), histories)


def at_random(seed: int) -> Arm:
    draw = np.random.default_rng(seed)
    return lambda histories: draw.permuted(np.tile(np.arange(MARKET.items), (len(histories), 1)), axis=1)


def fixed(histories: np.ndarray) -> np.ndarray:
    """The same slate for everyone."""
    return np.tile(np.arange(MARKET.items), (len(histories), 1))


def knowing(better: Callable[[simulator.Requests], np.ndarray]) -> Outcomes:
    """Outcomes of an arm that sees the truth: it looks at the requests as they are made."""
    current: list[simulator.Requests] = []

    def watched() -> Iterator[simulator.Requests]:
        for requests in day():
            current[:] = [requests]
            yield requests

    return serve(lambda histories: np.argsort(-better(current[0]), axis=1), [watched()], EMPTY)


def test_an_arm_against_itself_differs_by_exactly_nothing() -> None:
    first, second = run(fixed, days=2), run(fixed, days=2)
    for name, values in vars(first).items():
        np.testing.assert_array_equal(values, vars(second)[name])
    for name, interval in differences(second, first, seed=0, resamples=200).items():
        assert (interval.value, interval.lower, interval.upper) == (0.0, 0.0, 0.0), name


def test_knowing_the_users_beats_chance_beyond_doubt() -> None:
    gains = differences(knowing(lambda requests: requests.utility), run(at_random(0)), seed=0, resamples=300)
    assert gains["CTR"].lower > 0.5
    assert gains["GMV"].lower > 0
    assert gains["dislike rate"].upper < 0
    losses = differences(run(at_random(0)), knowing(lambda requests: requests.utility), seed=0, resamples=300)
    assert losses["CTR"].upper < 0


def test_two_arms_of_chance_are_not_told_apart() -> None:
    found = differences(run(at_random(1)), run(at_random(2)), seed=0, resamples=300)
    assert found["CTR"].lower < 0 < found["CTR"].upper


def test_outcomes_add_up() -> None:
    outcomes = run(fixed)
    asked = np.zeros(MARKET.users)
    clicks = bought = value = revenue = disliked = 0.0
    for requests in day():
        shown = fixed(requests.user[:, None])[:, : MARKET.slate]
        responses = requests.show(shown)
        asked[requests.user] += 1
        clicks += responses.clicked.sum()
        bought += responses.converted.sum()
        disliked += responses.disliked.sum()
        value += requests.items.price[shown[responses.converted]].sum()
        revenue += requests.bids[shown[responses.clicked]].sum()
    np.testing.assert_array_equal(outcomes.impressions, asked * MARKET.slate)
    assert outcomes.clicks.sum() == clicks > outcomes.conversions.sum() == bought > 0
    assert outcomes.dislikes.sum() == disliked
    assert outcomes.gmv.sum() == pytest.approx(value)
    assert outcomes.revenue.sum() == pytest.approx(revenue)
    twice = pooled([outcomes, run(fixed, trial=1)])
    assert twice.clicks.sum() == outcomes.clicks.sum() + run(fixed, trial=1).clicks.sum()


def test_luck_is_common_to_the_arms_request_by_request() -> None:
    """Until slates differ, responses are equal; and a user whose slates never differ never responds differently."""
    served_alike = np.arange(MARKET.users) % 2 == 0
    draw = np.random.default_rng(0)
    for ours, theirs in zip(day(), day(), strict=True):
        np.testing.assert_array_equal(ours.user, theirs.user)
        np.testing.assert_array_equal(ours.time, theirs.time)
        np.testing.assert_array_equal(ours.placement, theirs.placement)
        shown = fixed(ours.user[:, None])
        others = draw.permuted(shown, axis=1)
        alike = served_alike[ours.user]
        here = ours.show(shown[:, : ours.slate])
        there = theirs.show(np.where(alike[:, None], shown, others)[:, : ours.slate])
        np.testing.assert_array_equal(here.clicked[alike], there.clicked[alike])
        np.testing.assert_array_equal(here.converted[alike], there.converted[alike])
        np.testing.assert_array_equal(here.disliked[alike], there.disliked[alike])
        # The same draw decides at a place whatever is shown there: a likelier click is clicked wherever the other is.
        sure = (there.click_probability >= here.click_probability) & here.clicked
        assert there.clicked[sure].all()


def test_trials_draw_other_days_in_the_same_market() -> None:
    one, other = next(day(trial=1)), next(day(trial=2))
    assert not np.array_equal(one.time[:50], other.time[:50])
    np.testing.assert_array_equal(one.items.price, other.items.price)
    np.testing.assert_array_equal(next(day(trial=1)).utility, one.utility)


def test_histories_grow_by_the_arms_own_clicks_and_go_on_to_the_next_day() -> None:
    told: list[np.ndarray] = []

    def arm(histories: np.ndarray) -> np.ndarray:
        told.append(histories.copy())
        return fixed(histories)

    start = np.full((MARKET.users, 30), -1)
    start[:, 0] = 59
    outcomes = run(arm, days=2, histories=start)
    assert (told[0] == start[: len(told[0])]).all()
    assert (start[:, 1:] == -1).all()
    turns = sum(1 for _ in day_turns())
    first_of_second_day = told[turns]
    assert ((first_of_second_day >= 0).sum(axis=1) > 1).any()
    for histories in told:
        lengths = (histories >= 0).sum(axis=1)
        assert ((histories >= 0) == (np.arange(30) < lengths[:, None])).all()
        # What the arm never showed was never clicked.
        assert set(np.unique(histories[:, 1:])) <= {-1, *range(MARKET.slate)}
    assert max((histories >= 0).sum() for histories in told) <= outcomes.clicks.sum() + len(start)


def day_turns() -> Iterator[None]:
    for requests in day():
        requests.show(fixed(requests.user[:, None])[:, : requests.slate])
        yield


def test_a_full_history_loses_its_oldest_item() -> None:
    histories = np.array([[1, 2, -1], [1, 2, 3], [-1, -1, -1], [4, -1, -1]])
    append(histories, np.array([0, 1, 2]), np.array([7, 8, 9]))
    np.testing.assert_array_equal(histories, [[1, 2, 7], [2, 3, 8], [9, -1, -1], [4, -1, -1]])


def test_what_is_clicked_changes_what_a_user_wants() -> None:
    """Shown their favourites, users tire of the category and of the item; shown nothing they click, they do not."""
    rounds = day()
    first = next(rounds)
    responses = first.show(np.argsort(-first.utility, axis=1)[:, : first.slate])
    second = next(rounds)
    clicked = np.zeros((MARKET.users, MARKET.items), bool)
    clicked[first.user[:, None], responses.shown] = responses.clicked
    novelty_before, novelty_after = np.ones((2, MARKET.users, MARKET.items))
    novelty_before[first.user], novelty_after[second.user] = first.aspects[2], second.aspects[2]
    again = np.isin(np.arange(MARKET.users), second.user) & clicked.any(axis=1)
    assert again.sum() > 20
    assert (novelty_after < novelty_before)[again][clicked[again]].all()
    untouched = np.setdiff1d(second.user, np.flatnonzero(clicked.any(axis=1)))
    np.testing.assert_array_equal(novelty_after[untouched], novelty_before[untouched])


@pytest.mark.parametrize(
    ("slate", "message"),
    [
        (lambda count: np.zeros((count, 5), int), "5 different items, each from 0 to 59"),
        (lambda count: np.tile([0, 1, 2, 3, -1], (count, 1)), "5 different items, each from 0 to 59"),
        (lambda count: np.tile([0, 1, 2, 3, 60], (count, 1)), "5 different items, each from 0 to 59"),
        (lambda count: np.tile([0, 1, 2], (count, 1)), "for 5 items with"),
    ],
)
def test_a_slate_that_cannot_be_shown_is_refused(slate: Callable[[int], np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(lambda histories: slate(len(histories)))


def test_a_ratio_of_sums_weighs_users_by_what_they_did() -> None:
    clicks, shown = np.array([10.0, 0.0, 5.0]), np.array([100.0, 10.0, 50.0])
    found = relative_difference((2 * clicks, shown), (clicks, shown), seed=0, resamples=50)
    assert found.value == pytest.approx(1)
    shifted = relative_difference((clicks + 1.6, shown), (clicks, shown), seed=0, resamples=500)
    assert shifted.value == pytest.approx((15 + 4.8) / 15 - 1)
    nothing = relative_difference((clicks, shown), (np.zeros(3), shown), seed=0, resamples=50)
    assert np.isnan([nothing.value, nothing.lower, nothing.upper]).all()
