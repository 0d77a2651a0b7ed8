"""The marketplace as a data set of the benchmarks: what may be read when, and what its judges know."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import simulated, simulated_ab
from benchmarks.simulated import SHORT, Log, read_log
from benchmarks.world import World
from sgrec_core import simulator

FEEDBACK, EVALUATION = 3, 4


@pytest.fixture(scope="module")
def log() -> Log:
    return read_log(SHORT)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return simulated.world(short=True, cache=tmp_path_factory.mktemp("cache"))


def clicks_by_user(log: Log) -> dict[int, list[tuple[int, int]]]:
    """(milliseconds, item) of each user's clicks in order, from the events alone."""
    found: dict[int, list[tuple[int, int]]] = {}
    for row in pa.concat_tables(log.events).to_pylist():
        if row["event_type"] == "click":
            moment = round(row["event_time"].timestamp() * 1000)
            found.setdefault(int(row["user_id"][1:]), []).append((moment, int(row["item_id"][1:])))
    return {user: sorted(clicks) for user, clicks in found.items()}


def test_propensities_are_kept_on_demand(log: Log) -> None:
    with_them = read_log(SHORT, propensities=True)
    assert log.propensity is None
    np.testing.assert_array_equal(with_them.shown, log.shown)
    assert with_them.propensity.shape == log.shown.shape
    assert with_them.propensity.min() > 0
    # As seldom as is said: of what has probability p one is shown for 1 / p that might have been, 60 at each position.
    assert (1 / with_them.propensity).mean(axis=0) == pytest.approx(np.full(log.shown.shape[1], 60), rel=0.1)


def test_histories_are_the_clicks_strictly_before_the_request(log: Log) -> None:
    clicks = clicks_by_user(log)
    for day in range(EVALUATION + 1):
        rows = log.decisions(day)
        assert len(rows) > 50
        for row, history, target in zip(rows, log.histories(rows), log.targets(rows), strict=True):
            earlier = [item for moment, item in clicks[log.user[row]] if moment < log.time[row]]
            assert history[history >= 0].tolist() == earlier[-simulated.MAX_HISTORY :]
            assert (history[len(earlier) :] == -1).all()
            # Requests may overlap in time: what was clicked first of this one's slate.
            chosen = set(log.shown[row][log.clicked[row]])
            later = (item for moment, item in clicks[log.user[row]] if moment >= log.time[row])
            assert target == next(item for item in later if item in chosen)


def test_supervised_training_ends_before_feedback_and_feedback_before_evaluation(log: Log, world: World) -> None:
    start = {day: log.time[log.day == day].min() for day in (FEEDBACK, EVALUATION)}
    latest = {day: log.time[log.day == day].max() for day in (FEEDBACK - 1, FEEDBACK)}
    assert latest[FEEDBACK - 1] < start[FEEDBACK]
    assert latest[FEEDBACK] < start[EVALUATION]
    clicks = clicks_by_user(log)
    before = [[item for moment, item in found if moment < start[FEEDBACK]] for found in clicks.values()]
    assert world.windows.targets == sum(len(items) - 1 for items in before if items)
    trained = {tuple(window[window >= 0].tolist()) for window in world.windows.items}
    for items in before:
        if 2 <= len(items) <= simulated.MAX_HISTORY + 1:
            assert tuple(items) in trained
    requests, preferred, others = log.pairs()
    assert set(log.day[requests]) == set(range(FEEDBACK))
    assert (preferred != others).all()
    for request, item, other in zip(requests, preferred, others, strict=True):
        assert item in log.shown[request][log.clicked[request]]
        assert other in log.shown[request][~log.clicked[request]]


def test_evaluation_is_split_by_user(log: Log, world: World) -> None:
    assert not set(world.validation.users) & set(world.test.users)
    assert len(world.validation.targets) + len(world.test.targets) == len(log.decisions(EVALUATION))
    assert min(len(world.validation.targets), len(world.test.targets)) > 50
    for part in (world.feedback, world.validation, world.test):
        assert part.histories.shape == (len(part.targets), simulated.MAX_HISTORY)
        assert (part.histories[:, 0] >= 0).all()
        assert part.targets.min() >= 0


def test_the_business_reward_reads_nothing_of_the_evaluation_day(log: Log, world: World) -> None:
    rows = np.arange(20)
    items = np.tile(np.arange(16), (20, 1))
    rewards = world.business(rows, items)
    assert rewards.shape == items.shape
    assert (rewards > 0).all()
    assert len({tuple(row) for row in rewards.tolist()}) > 10
    without = simulated.business_reward(replace(log, events=log.events[:EVALUATION]), log.decisions(FEEDBACK))
    np.testing.assert_array_equal(without(rows, items), rewards)


def test_the_oracle_ranks_as_the_users_do(log: Log, world: World) -> None:
    """In the state that the click model used: its utility is the oracle's score and the quality that no text tells."""
    market = SHORT.settings
    day = simulator.simulate_day(market, SHORT.logged_days[FEEDBACK], SHORT.first_day)
    decisions = log.decisions(FEEDBACK)
    slates = decisions - np.flatnonzero(log.day == FEEDBACK)[0]
    scores = world.semantic["oracle"](np.arange(len(decisions)), day.shown[slates])
    untold = simulator.QUALITY_GAIN * day.items.quality[day.shown[slates]]
    np.testing.assert_allclose(scores + untold, day.utility[slates], atol=1e-6)


def test_the_noisy_oracle_is_as_often_right_as_it_should_be(log: Log, world: World) -> None:
    rows = np.arange(len(world.feedback.targets))
    draw = np.random.default_rng(3)
    right = []
    for _ in range(20):
        items = draw.integers(0, world.trie.items, (len(rows), 2))
        items = items[items[:, 0] != items[:, 1]]
        asked = rows[: len(items)]
        gap = np.diff(world.semantic["noisy_oracle"](asked, items))
        truth = world.semantic["oracle"](asked, items) + simulator.QUALITY_GAIN * log.items.quality[items]
        right.append((np.sign(gap) == np.sign(np.diff(truth))).mean())
    assert np.mean(right) == pytest.approx(simulated.PAIR_ACCURACY, abs=0.02)


def test_the_embedding_judge_is_right_more_often_than_chance(log: Log, world: World) -> None:
    rows = np.arange(len(world.feedback.targets))
    items = np.stack([np.random.default_rng(row).permutation(world.trie.items)[:8] for row in rows])
    judge, oracle = world.semantic["embedding"](rows, items), world.semantic["oracle"](rows, items)
    np.testing.assert_array_equal(world.semantic["embedding"](rows[:3], items[:3]), judge[:3])
    first, second = np.triu_indices(8, 1)
    right = np.sign(judge[:, first] - judge[:, second]) == np.sign(oracle[:, first] - oracle[:, second])
    assert right.mean() > 0.55


def test_the_ab_test_serves_all_users_after_the_logged_days(log: Log) -> None:
    told: list[np.ndarray] = []

    def popular(histories: np.ndarray) -> np.ndarray:
        told.append(histories.copy())
        return np.tile(np.argsort(-np.bincount(log.clicks.item, minlength=60), kind="stable"), (len(histories), 1))

    runs = [simulated_ab.compare({"a": popular, "b": popular}, seed, short=True) for seed in (0, 1)]
    assert (runs[0]["a"].impressions > 0).mean() > 0.9
    assert runs[0]["a"].clicks.sum() != runs[1]["a"].clicks.sum()
    # Everyone starts with what the logs hold.
    last = log.last_histories()
    clicks = clicks_by_user(log)
    assert (told[0][:, 0] >= 0).mean() > 0.9
    assert {tuple(row) for row in told[0]} <= {tuple(row) for row in last}
    for user, found in clicks.items():
        items = [item for _, item in found][-simulated.MAX_HISTORY :]
        assert last[user][last[user] >= 0].tolist() == items
    (found,) = simulated_ab.differences(runs, "a", short=True).values()
    assert {name: interval.value for name, interval in found.items()} == dict.fromkeys(found, 0.0)
    assert simulated_ab.GOALS.keys() <= found.keys()


def test_the_ab_test_lies_after_all_days_that_are_read() -> None:
    for parameters in (simulated_ab.PARAMETERS, simulated_ab.SHORT_PARAMETERS):
        market = parameters.market
        assert min(market.days_after(parameters.days)) > max(market.logged_days)
        assert len(market.logged_days) == market.supervised_days + 2
