"""A seeded marketplace whose true preferences are known: its items, its users and what they truly like.

Users have latent tastes; items have attributes that their text tells (`vocabulary`). What a user would like is a mix
of the four aspects that the judge is asked about, with weights of the user's own:

    profile relevance   the item's category, style, occasion and price suit the user's lasting taste
    future interest     it suits what the user is after today, and what follows on the last click
    novelty             the user has seen little of its category, and not this item
    contextual          its occasion suits the hour and the weekday, its price the placement

    utility  = sum over aspects of weight * aspect + gain * quality
    P(click) = sigmoid(gain * (utility - threshold)) * position bias

A logging policy with a noisy view of the utility and an eye on bids fills the slates, so what was shown is biased as
in a real log; other policies can be put in its place and meet the same users (`day_requests`). Any day can be written
without the days before it: what a user was after on earlier days is redrawn from the seed, and stands in for the
earlier clicks that today's familiarity depends on. New items appear every day.

The truth lies in ``SGREC_HOME/simulator``, outside the landing. The night never reads it; it is there to measure
afterwards what was learned.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from sgrec_core.logs.context import DAYPARTS
from sgrec_core.settings import SimulatorSettings
from sgrec_core.simulator.vocabulary import (
    AGE_BANDS,
    CATEGORIES,
    COLOURS,
    MANNERS,
    NEXT_CATEGORY,
    OCCASION_FITS,
    OCCASIONS,
    REGIONS,
    STYLES,
    TIERS,
    WEEKEND_TRIPS_AT_WEEKENDS,
)

ASPECTS = ("profile_relevance", "future_interest", "novelty", "contextual_relevance")
MEMORY_DAYS = 14
"""How many earlier days of interests count towards what a user is familiar with."""
USERS_AT_ONCE = 2000
"""Users simulated together: bounds memory at this many times the catalogue, a few times over."""
CLICK_GAIN, CLICK_THRESHOLD = 9.0, 0.70
QUALITY_GAIN = 0.04
DAY_MILLISECONDS = 86_400_000


class Stream(IntEnum):
    """Streams of random numbers, so that a change in one does not shift the others."""

    ITEMS = 0
    USERS = 1
    INTERESTS = 2
    DAY = 3
    BIDS = 4
    BAD_ROWS = 5
    TRIALS = 6


@dataclass(frozen=True)
class Items:
    """The catalogue as of a day, N items; all arrays have shape [N], the first five index the vocabulary."""

    category: np.ndarray
    product: np.ndarray
    style: np.ndarray
    occasion: np.ndarray
    tier: np.ndarray
    price: np.ndarray
    quality: np.ndarray
    """How much better the item is than its text says; standard normal, half-scale."""
    born: np.ndarray
    """Days after the first day on which the item appeared."""
    colour: np.ndarray

    @property
    def ids(self) -> list[str]:
        return [f"i{number:06d}" for number in range(len(self.category))]


@dataclass(frozen=True)
class Users:
    """U users and what they truly care about."""

    manner: np.ndarray
    """Index into the manners of shopping [U]."""
    weights: np.ndarray
    """Weights of `ASPECTS`, each row sums to 1 [U, 4]."""
    category: np.ndarray
    """Taste in [0, 1], the favourite has 1 [U, categories]."""
    style: np.ndarray
    """Likewise [U, styles]."""
    occasion: np.ndarray
    """Likewise [U, occasions]."""
    tier: np.ndarray
    """Preferred price tier [U]."""
    price_sensitivity: np.ndarray
    """Taste lost for each tier that an item is away from the preferred one [U]."""
    active_hour: np.ndarray
    """Hour around which the user comes [U]."""
    age: np.ndarray
    region: np.ndarray

    @property
    def ids(self) -> list[str]:
        return [f"u{number:06d}" for number in range(len(self.manner))]


@dataclass
class State:
    """What changes in the course of the day for the users at hand, U of them."""

    familiarity: np.ndarray
    """How well each category is known, 0 unknown [U, categories]."""
    interest: np.ndarray
    """Category that the user is after today [U]."""
    last_category: np.ndarray
    """Category of the last click, -1 before the first [U]."""
    last_occasion: np.ndarray
    """Occasion of the last click, -1 before the first [U]."""
    clicked: np.ndarray
    """Items clicked today; bool [U, N]."""


def draw_items(settings: SimulatorSettings, number: int) -> Items:
    """The catalogue on the ``number``-th day after the first: the first day's items and each later day's new ones."""
    blocks = [_draw_item_block(settings, 0, settings.items)]
    blocks += [_draw_item_block(settings, day, settings.new_items_per_day) for day in range(1, number + 1)]
    return Items(*(np.concatenate(columns) for columns in zip(*blocks, strict=True)))


def _draw_item_block(settings: SimulatorSettings, born: int, count: int) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng([settings.seed, Stream.ITEMS, born])
    category = random.integers(0, len(CATEGORIES), count)
    tier = random.choice(len(TIERS), count, p=[0.35, 0.4, 0.25])
    base_price = np.random.default_rng([settings.seed, Stream.ITEMS]).uniform(12, 60, len(CATEGORIES))
    price = base_price[category] * np.array([0.5, 1.0, 2.2])[tier] * random.lognormal(0, 0.25, count)
    return (
        category,
        random.integers(0, 6, count),
        random.integers(0, len(STYLES), count),
        random.integers(0, len(OCCASIONS), count),
        tier,
        price.round(2),
        random.normal(0, 0.5, count),
        np.full(count, born),
        random.integers(0, len(COLOURS), count),
    )


def draw_users(settings: SimulatorSettings) -> Users:
    """The users; the same on every day."""
    random = np.random.default_rng([settings.seed, Stream.USERS])
    count = settings.users
    manner = random.integers(0, len(MANNERS), count)
    means = np.array([mean for _, mean in MANNERS.values()])[manner]
    weights = random.standard_gamma(means * 25)

    def taste(size: int, concentration: float) -> np.ndarray:
        drawn = random.dirichlet(np.full(size, concentration), count)
        return np.sqrt(drawn / drawn.max(axis=1, keepdims=True))

    return Users(
        manner=manner,
        weights=weights / weights.sum(axis=1, keepdims=True),
        category=taste(len(CATEGORIES), 0.15),
        style=taste(len(STYLES), 0.2),
        occasion=taste(len(OCCASIONS), 0.3),
        tier=random.choice(len(TIERS), count, p=[0.4, 0.4, 0.2]),
        price_sensitivity=random.uniform(0.05, 0.35, count),
        active_hour=random.choice([7, 9, 12, 16, 19, 21], count),
        age=random.integers(0, len(AGE_BANDS), count),
        region=random.integers(0, len(REGIONS), count),
    )


def interests(settings: SimulatorSettings, users: Users, number: int) -> np.ndarray:
    """The category that each user is after on day ``number`` and on the `MEMORY_DAYS` days before it.

    Most days it comes from the user's taste, on some from nowhere. Shape [MEMORY_DAYS + 1, U], the day itself first.
    """
    cumulative = np.cumsum(users.category**2 + 0.02, axis=1)
    cumulative /= cumulative[:, -1:]
    days = []
    for earlier in range(MEMORY_DAYS + 1):
        # Days before the first are as real to the users as any other; the offset keeps the seed positive.
        random = np.random.default_rng([settings.seed, Stream.INTERESTS, number - earlier + 10_000])
        days.append((random.random((len(cumulative), 1)) > cumulative).sum(axis=1))
    return np.stack(days)


def true_aspects(
    users: Users, items: Items, state: State, *, hour: np.ndarray, placement: np.ndarray, weekend: bool
) -> np.ndarray:
    """The four aspects of every item for every user in their state; float32 in [0, 1] of shape [4, U, N].

    Args:
        hour: hour of the request [U].
        placement: index into the placements [U].
        weekend: whether the day is a Saturday or Sunday.
    """
    tiers_away = np.abs(users.tier[:, None] - items.tier[None, :])
    profile = (
        0.55 * users.category[:, items.category]
        + 0.25 * users.style[:, items.style]
        + 0.20 * users.occasion[:, items.occasion]
        - users.price_sensitivity[:, None] * tiers_away
    )
    follows = np.array(NEXT_CATEGORY)[state.last_category]
    future = (
        0.5 * (items.category[None, :] == state.interest[:, None])
        + 0.3 * ((items.category[None, :] == follows[:, None]) & (state.last_category >= 0)[:, None])
        + 0.2 * (items.occasion[None, :] == state.last_occasion[:, None])
    )
    novelty = 1 - 0.7 * np.minimum(state.familiarity, 1)[:, items.category] - 0.3 * state.clicked
    occasion_fits = _occasions_by_hour(weekend)[hour][:, items.occasion]
    # At the checkout people add small things; elsewhere the placement matters little.
    tier_fits = np.array([[0.5, 0.5, 0.5], [0.4, 0.6, 0.4], [0.3, 0.5, 0.7], [1.0, 0.4, 0.0]])[placement][:, items.tier]
    context = 0.75 * occasion_fits + 0.25 * tier_fits
    return np.clip(np.stack([profile, future, novelty, context]), 0, 1).astype(np.float32)


def _occasions_by_hour(weekend: bool) -> np.ndarray:
    """How much each occasion suits each hour [24, occasions]."""
    table = np.zeros((24, len(OCCASIONS)))
    for daypart, hours in DAYPARTS.items():
        table[hours.start : hours.stop] = OCCASION_FITS[daypart]
    if weekend:
        names = list(OCCASIONS)
        table[:, names.index("weekend trips")] += WEEKEND_TRIPS_AT_WEEKENDS
        for working in ("commuting", "home office"):
            table[:, names.index(working)] -= WEEKEND_TRIPS_AT_WEEKENDS
    return np.clip(table, 0, 1)
