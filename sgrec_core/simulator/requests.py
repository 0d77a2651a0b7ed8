"""A day of the marketplace: who asks when, what a policy shows them, and how they respond."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date

import numpy as np

from sgrec_core.logs import landing
from sgrec_core.settings import SimulatorSettings
from sgrec_core.simulator.propensities import position_probabilities
from sgrec_core.simulator.vocabulary import CATEGORIES, PLACEMENTS
from sgrec_core.simulator.world import (
    CLICK_GAIN,
    CLICK_THRESHOLD,
    DAY_MILLISECONDS,
    MEMORY_DAYS,
    QUALITY_GAIN,
    USERS_AT_ONCE,
    Items,
    State,
    Stream,
    Users,
    draw_items,
    draw_users,
    interests,
    true_aspects,
)


@dataclass(frozen=True, kw_only=True)
class Responses:
    """What R slates of ``slate`` items each led to."""

    shown: np.ndarray
    """Item indices by position [R, slate]."""
    aspects: np.ndarray
    """True aspects of what was shown [R, slate, 4]."""
    utility: np.ndarray
    """[R, slate]"""
    click_probability: np.ndarray
    """Position bias included [R, slate]."""
    clicked: np.ndarray
    """Bool [R, slate]."""
    converted: np.ndarray
    """Bool, a subset of clicked [R, slate]."""
    disliked: np.ndarray
    """Bool, disjoint from clicked [R, slate]."""


@dataclass(frozen=True, kw_only=True)
class SimulatedDay(Responses):
    """A day as it truly happened: all its slates, sorted by user and time, and what they led to."""

    items: Items
    users: Users
    bids: np.ndarray
    """Bid per click of each item today [N]."""
    user: np.ndarray
    """Who asked [R]."""
    time: np.ndarray
    """Milliseconds from the start of the day [R]."""
    placement: np.ndarray
    """[R]"""
    propensity: np.ndarray | None = None
    """The probability of what was shown, or None where `simulate_day` was told of none [R, slate]."""


def simulate_day(
    settings: SimulatorSettings,
    day: str,
    first_day: str,
    *,
    policy: "Policy | None" = None,
    propensities: "Propensities | None" = None,
) -> SimulatedDay:
    """What happens on ``day``; depends on the settings, the day and the policy (default: `logging_policy`) alone.

    ``propensities`` are the policy's, such as `logging_propensities`; they change nothing that happens.
    """
    policy = policy or logging_policy
    parts = []
    for requests in day_requests(settings, day, first_day):
        shown = policy(requests)
        asked = {"user": requests.user, "time": requests.time, "placement": requests.placement}
        known = {"propensity": propensities(requests, shown)} if propensities else {}
        parts.append({**asked, **known, **vars(requests.show(shown))})
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort((columns["time"], columns["user"]))
    number = landing.day_number(day, first_day)
    items = draw_items(settings, number)
    bids = _draw_bids(settings, items, number).round(4)
    return SimulatedDay(
        items=items,
        users=draw_users(settings),
        bids=bids,
        **{name: values[order] for name, values in columns.items()},
    )


@dataclass(frozen=True)
class Requests:
    """R users who ask at the same turn (each for the first time today, or the second, ...), in their true state."""

    user: np.ndarray
    """Who asks [R], none twice."""
    time: np.ndarray
    """Milliseconds from the start of the day [R]."""
    placement: np.ndarray
    """[R]"""
    items: Items
    bids: np.ndarray
    """Bid per click of each item today [N]."""
    slate: int
    """How many items to show."""
    aspects: np.ndarray
    """True aspects of every item [4, R, N]."""
    utility: np.ndarray
    """True utility of every item [R, N]."""
    random: np.random.Generator
    """What `logging_policy` draws from. A policy that leaves it alone can be compared with another that does, request
    by request: clicks, purchases and dislikes are then decided by the same numbers."""
    state: State
    """Of the group of users that these belong to; `show` changes it."""
    rows: np.ndarray
    """Which rows of ``state`` they are [R]."""

    def show(self, shown: np.ndarray) -> Responses:
        """Show items ``shown`` [R, slate], no item twice in a row: the users respond, and what they click changes them.

        To be called once, before the next turn is asked for.
        """
        rows = np.arange(len(shown))[:, None]
        liking = self.utility[rows, shown]
        position_bias = 1 / (1 + 0.08 * np.arange(shown.shape[1]))
        click_probability = _sigmoid(CLICK_GAIN * (liking - CLICK_THRESHOLD)) * position_bias
        clicked = self.random.random(shown.shape) < click_probability
        bought = self.random.random(shown.shape) < _sigmoid(6 * (liking - 0.85))
        disliked = ~clicked & (self.random.random(shown.shape) < 0.04 * _sigmoid(-10 * (liking - 0.35)))
        for position in range(shown.shape[1]):
            clicking = np.flatnonzero(clicked[:, position])
            item = shown[clicking, position]
            user = self.rows[clicking]
            self.state.familiarity[user, self.items.category[item]] += 0.34
            self.state.last_category[user] = self.items.category[item]
            self.state.last_occasion[user] = self.items.occasion[item]
            self.state.clicked[user, item] = True
        return Responses(
            shown=shown,
            aspects=np.moveaxis(self.aspects[:, rows, shown], 0, -1),
            utility=liking,
            click_probability=click_probability,
            clicked=clicked,
            converted=clicked & bought,
            disliked=disliked,
        )


Policy = Callable[[Requests], np.ndarray]
"""Requests to the items to show [R, slate], best first."""
Propensities = Callable[[Requests, np.ndarray], np.ndarray]
"""Requests and what a policy shows them [R, slate] to the probabilities with which it shows each item at its position,
whatever else it shows [R, slate]."""
NOISE, BOOST = 1.5, 20.0
"""Of the logging policy's scores: the scale of their Gumbel noise, and what is added to those that it explores."""


def logging_policy(requests: Requests) -> np.ndarray:
    """Fills the logs: sees the utility through noise, favours bids a little and explores a little."""
    random, slate = requests.random, requests.slate
    score = _score(requests)
    score += random.gumbel(0, NOISE, score.shape)
    score[random.random(score.shape) < 1 / score.shape[1]] += BOOST
    best = np.argpartition(-score, slate - 1, axis=1)[:, :slate]
    rank = np.argsort(-np.take_along_axis(score, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, rank, axis=1)


def logging_propensities(requests: Requests, shown: np.ndarray) -> np.ndarray:
    """The `Propensities` of `logging_policy`."""
    score = _score(requests)
    return position_probabilities(score / NOISE, shown, explored=1 / score.shape[1], log_boost=BOOST / NOISE)


def _score(requests: Requests) -> np.ndarray:
    """What `logging_policy` knows before its draws [R, N]."""
    return 10 * requests.utility + 0.3 * np.log(requests.bids)


def day_requests(
    settings: SimulatorSettings, day: str, first_day: str, *, trial: int | None = None
) -> Iterator[Requests]:
    """The requests of ``day``, turn by turn; each must be shown its slates before the next is asked for.

    Who asks when and where does not depend on what is shown. With ``trial`` (not negative) all that is drawn during the
    day (requests, moments, responses) is drawn afresh, in the same market with the same users and interests; without
    it, as in the logs.
    """
    number = landing.day_number(day, first_day)
    items, users = draw_items(settings, number), draw_users(settings)
    weekend = date.fromisoformat(day).weekday() >= 5
    market = _Market(items, _draw_bids(settings, items, number), weekend)
    after = interests(settings, users, number)
    for start in range(0, settings.users, USERS_AT_ONCE):
        chosen = slice(start, start + USERS_AT_ONCE)
        stream = [Stream.DAY, number, start] if trial is None else [Stream.TRIALS, number, start, trial]
        random = np.random.default_rng([settings.seed, *stream])
        group = Users(**{name: values[chosen] for name, values in vars(users).items()})
        yield from _group_requests(settings, market, random, start, group, after[:, chosen])


def _draw_bids(settings: SimulatorSettings, items: Items, number: int) -> np.ndarray:
    random = np.random.default_rng([settings.seed, Stream.BIDS, number])
    return items.price * 0.02 * random.lognormal(0, 0.3, len(items.price))


@dataclass(frozen=True)
class _Market:
    """What is the same for all users of a day."""

    items: Items
    bids: np.ndarray
    """[N]"""
    weekend: bool


def _group_requests(
    settings: SimulatorSettings,
    market: _Market,
    random: np.random.Generator,
    start: int,
    users: Users,
    after: np.ndarray,
) -> Iterator[Requests]:
    """The requests of the group of users whose first is number ``start``."""
    count, catalogue = len(users.manner), len(market.items.category)
    turns = random.poisson(settings.requests_per_user, count)
    most = max(1, int(turns.max()))
    hours = (users.active_hour[:, None] + random.normal(0, 3, (count, most))) % 24
    # The last half hour stays free, so that clicks and purchases fall on the same day.
    times = np.sort((hours / 24 * (DAY_MILLISECONDS - 1_800_000)).astype(np.int64), axis=1)
    fading = 0.5 ** (np.arange(1, MEMORY_DAYS + 1) / 4)
    familiarity = np.zeros((count, len(CATEGORIES)))
    for weight, category in zip(fading, after[1:], strict=True):
        familiarity[np.arange(count), category] += 0.5 * weight
    state = State(
        familiarity=familiarity,
        interest=after[0],
        last_category=np.full(count, -1),
        last_occasion=np.full(count, -1),
        clicked=np.zeros((count, catalogue), bool),
    )
    for turn in range(most):
        who = np.flatnonzero(turns > turn)
        if not len(who):
            break
        group = Users(**{name: values[who] for name, values in vars(users).items()})
        now = State(**{name: values[who] for name, values in vars(state).items()})
        time = times[who, turn]
        placement = random.choice(len(PLACEMENTS), len(who), p=[0.45, 0.25, 0.2, 0.1])
        aspects = true_aspects(
            group, market.items, now, hour=time // 3_600_000, placement=placement, weekend=market.weekend
        )
        yield Requests(
            user=who + start,
            time=time,
            placement=placement,
            items=market.items,
            bids=market.bids,
            slate=min(settings.slate, catalogue),
            aspects=aspects,
            utility=np.einsum("ua,aun->un", group.weights, aspects) + QUALITY_GAIN * market.items.quality,
            random=random,
            state=state,
            rows=who,
        )


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
