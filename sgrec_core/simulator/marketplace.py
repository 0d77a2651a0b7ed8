"""A seeded marketplace that writes raw logs whose true preferences are known.

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

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sgrec_core.errors import InputError
from sgrec_core.hashing import digest
from sgrec_core.logs import landing
from sgrec_core.logs.context import DAYPARTS
from sgrec_core.runtime.code import code_digest
from sgrec_core.settings import SimulatorSettings
from sgrec_core.simulator.vocabulary import (
    AGE_BANDS,
    CATEGORIES,
    COLOURS,
    MANNERS,
    NEXT_CATEGORY,
    OCCASION_FITS,
    OCCASIONS,
    PLACEMENTS,
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

# Streams of random numbers, so that a change in one does not shift the others.
_ITEMS, _USERS, _INTERESTS, _DAY, _BIDS, _BAD_ROWS, _TRIALS = range(7)


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


def write_day(settings: SimulatorSettings, *, day: str, first_day: str, landing_root: Path, truth_root: Path) -> bool:
    """Write the raw logs of ``day`` under ``landing_root`` and the truth behind them under ``truth_root``.

    Returns whether anything was written: a day that the same settings made before is left as it is.

    Raises:
        InputError: ``day`` lies before ``first_day``.
    """
    if landing.day_number(day, first_day) < 0:
        raise InputError(f"the simulated marketplace opened on {first_day}; it has no logs of {day}")
    fingerprint = fingerprint_of_day(settings, day=day, first_day=first_day)
    return landing.write_day(
        landing_root, day, fingerprint, lambda folder: _write_files(folder, truth_root, settings, day, first_day)
    )


def _write_files(folder: Path, truth_root: Path, settings: SimulatorSettings, day: str, first_day: str) -> None:
    simulated = simulate_day(settings, day, first_day)
    bad = _write_events(folder / landing.FOLDERS["event"], simulated, settings, day)
    landing.write_jsonl(folder / landing.FOLDERS["item"] / "items.jsonl", catalogue_rows(simulated.items))
    landing.write_csv(folder / landing.FOLDERS["user"] / "profiles.csv", profile_rows(simulated.users))
    _write_truth(truth_root, simulated, settings, day, bad)


def fingerprint_of_day(settings: SimulatorSettings, *, day: str, first_day: str) -> str:
    """Digest of what `write_day` makes a day from: the settings and the code of the simulator."""
    code = code_digest(f"{__name__}:_write_files")
    return digest("simulator", code, settings.model_dump_json(), first_day, day, length=32)


def draw_items(settings: SimulatorSettings, number: int) -> Items:
    """The catalogue on the ``number``-th day after the first: the first day's items and each later day's new ones."""
    blocks = [_draw_item_block(settings, 0, settings.items)]
    blocks += [_draw_item_block(settings, day, settings.new_items_per_day) for day in range(1, number + 1)]
    return Items(*(np.concatenate(columns) for columns in zip(*blocks, strict=True)))


def _draw_item_block(settings: SimulatorSettings, born: int, count: int) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng([settings.seed, _ITEMS, born])
    category = random.integers(0, len(CATEGORIES), count)
    tier = random.choice(len(TIERS), count, p=[0.35, 0.4, 0.25])
    base_price = np.random.default_rng([settings.seed, _ITEMS]).uniform(12, 60, len(CATEGORIES))
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
    random = np.random.default_rng([settings.seed, _USERS])
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
        random = np.random.default_rng([settings.seed, _INTERESTS, number - earlier + 10_000])
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


def simulate_day(
    settings: SimulatorSettings, day: str, first_day: str, *, policy: "Policy | None" = None
) -> SimulatedDay:
    """What happens on ``day``; depends on the settings, the day and the policy (default: `logging_policy`) alone."""
    policy = policy or logging_policy
    parts = []
    for requests in day_requests(settings, day, first_day):
        responses = requests.show(policy(requests))
        asked = {"user": requests.user, "time": requests.time, "placement": requests.placement}
        parts.append({**asked, **vars(responses)})
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
    """What `logging_policy` draws from. A policy that leaves it alone can be compared with another that does, request by
    request: clicks, purchases and dislikes are then decided by the same numbers."""
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


def logging_policy(requests: Requests) -> np.ndarray:
    """Fills the logs: sees the utility through noise, favours bids a little and explores a little."""
    utility, random, slate = requests.utility, requests.random, requests.slate
    score = 10 * utility + 0.3 * np.log(requests.bids) + random.gumbel(0, 1.5, utility.shape)
    score[random.random(utility.shape) < 1 / utility.shape[1]] += 20
    best = np.argpartition(-score, slate - 1, axis=1)[:, :slate]
    rank = np.argsort(-np.take_along_axis(score, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, rank, axis=1)


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
    bids = _draw_bids(settings, items, number)
    after = interests(settings, users, number)
    for start in range(0, settings.users, USERS_AT_ONCE):
        chosen = slice(start, start + USERS_AT_ONCE)
        stream = [_DAY, number, start] if trial is None else [_TRIALS, number, start, trial]
        random = np.random.default_rng([settings.seed, *stream])
        group = Users(**{name: values[chosen] for name, values in vars(users).items()})
        yield from _group_requests(settings, random, start, group, items, bids, after[:, chosen], weekend)


def _draw_bids(settings: SimulatorSettings, items: Items, number: int) -> np.ndarray:
    random = np.random.default_rng([settings.seed, _BIDS, number])
    return items.price * 0.02 * random.lognormal(0, 0.3, len(items.price))


def _group_requests(
    settings: SimulatorSettings,
    random: np.random.Generator,
    start: int,
    users: Users,
    items: Items,
    bids: np.ndarray,
    after: np.ndarray,
    weekend: bool,
) -> Iterator[Requests]:
    """The requests of the group of users whose first is number ``start``."""
    count, catalogue = len(users.manner), len(items.category)
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
        aspects = true_aspects(group, items, now, hour=time // 3_600_000, placement=placement, weekend=weekend)
        yield Requests(
            user=who + start,
            time=time,
            placement=placement,
            items=items,
            bids=bids,
            slate=min(settings.slate, catalogue),
            aspects=aspects,
            utility=np.einsum("ua,aun->un", group.weights, aspects) + QUALITY_GAIN * items.quality,
            random=random,
            state=state,
            rows=who,
        )


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def catalogue_rows(items: Items) -> list[dict[str, object]]:
    """Raw catalogue rows; the text names every latent attribute except quality."""
    categories, tiers, styles, occasions = (list(v.items()) for v in (CATEGORIES, TIERS, STYLES, OCCASIONS))
    rows: list[dict[str, object]] = []
    for index, item_id in enumerate(items.ids):
        path, products = categories[items.category[index]]
        product = products[items.product[index]]
        _, (brands, tier_word, tier_sentence) = tiers[items.tier[index]]
        _, (adjectives, style_sentence) = styles[items.style[index]]
        _, (occasion_phrase, occasion_sentence) = occasions[items.occasion[index]]
        brand = brands[index % len(brands)]
        adjective = adjectives[index % len(adjectives)]
        colour = COLOURS[items.colour[index]]
        title = " ".join(
            word for word in (brand, adjective, tier_word, product.title(), occasion_phrase + ",", colour) if word
        )
        rows.append(
            {
                "item_id": item_id,
                "title": title,
                "description": f"{style_sentence} {occasion_sentence} {tier_sentence}",
                "brand": brand,
                "category": path,
                "price": float(items.price[index]),
            }
        )
    return rows


def profile_rows(users: Users) -> list[dict[str, object]]:
    """Raw profile rows: what users say of themselves, which tells their lasting taste but not its exact weights."""
    categories, styles, tiers, manners = (list(v) for v in (CATEGORIES, STYLES, TIERS, MANNERS.values()))
    favourites = np.argsort(-users.category, axis=1, kind="stable")[:, :2]
    return [
        {
            "user_id": user_id,
            "age": AGE_BANDS[users.age[index]],
            "region": REGIONS[users.region[index]],
            "favourite_categories": "; ".join(categories[category] for category in favourites[index]),
            "favourite_style": styles[int(users.style[index].argmax())],
            "price_level": tiers[users.tier[index]],
            "shopping": manners[users.manner[index]][0],
        }
        for index, user_id in enumerate(users.ids)
    ]


def event_rows(simulated: SimulatedDay, day: str) -> list[dict[str, object]]:
    """The day's events in order of time; ``event_time`` in milliseconds since 1970."""
    start = int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1000)
    item_ids, user_ids, compact_day = simulated.items.ids, simulated.users.ids, day.replace("-", "")
    random = np.random.default_rng([start // DAY_MILLISECONDS, len(simulated.user)])
    click_delay = random.integers(2_000, 60_000, simulated.shown.shape)
    purchase_delay = random.integers(30_000, 1_200_000, simulated.shown.shape)
    rows: list[dict[str, object]] = []
    for slate, user in enumerate(simulated.user):
        time = start + int(simulated.time[slate])
        common = {
            "user_id": user_ids[user],
            "request_id": f"r{compact_day}-{slate:07d}",
            "placement": PLACEMENTS[simulated.placement[slate]],
        }
        for position, item in enumerate(simulated.shown[slate]):
            event: dict[str, object] = {
                "event_time": time,
                "event_type": "impression",
                **common,
                "item_id": item_ids[item],
                "position": position,
                "price": float(simulated.items.price[item]),
                "bid": float(simulated.bids[item]),
            }
            rows.append(event)
            clicked_at = time + int(click_delay[slate, position])
            if simulated.clicked[slate, position]:
                rows.append({**event, "event_type": "click", "event_time": clicked_at})
            if simulated.converted[slate, position]:
                bought_at = clicked_at + int(purchase_delay[slate, position])
                rows.append({**event, "event_type": "conversion", "event_time": bought_at})
            if simulated.disliked[slate, position]:
                rows.append({**event, "event_type": "dislike", "event_time": clicked_at})
    rows.sort(key=lambda row: row["event_time"])  # type: ignore[arg-type, return-value]
    return [{"event_id": f"e{compact_day}-{number:08d}", **row} for number, row in enumerate(rows)]


def _write_events(folder: Path, simulated: SimulatedDay, settings: SimulatorSettings, day: str) -> dict[str, int]:
    """Write the events as two producers would, each in two files: the web in ISO times, the app in milliseconds.

    Returns how many bad rows were added, by the reason for which they must be rejected.
    """
    rows = event_rows(simulated, day)
    random = np.random.default_rng([settings.seed, _BAD_ROWS, len(rows)])
    bad_count = round(len(rows) * settings.bad_share / (1 - settings.bad_share))
    copied = np.sort(random.integers(0, len(rows), bad_count))
    bad_rows: dict[int, list[str]] = {}
    reasons: dict[str, int] = {}
    for number, index in enumerate(copied):
        reason, make = list(_BAD_ROWS_BY_REASON.items())[number % len(_BAD_ROWS_BY_REASON)]
        bad_rows.setdefault(int(index), []).append(make(rows[index]))
        reasons[reason] = reasons.get(reason, 0) + 1
    lines: dict[str, list[str]] = {name: [] for name in ("web-0", "web-1", "app-0", "app-1")}
    for index, row in enumerate(rows):
        half = int(2 * index >= len(rows))
        app = int(str(row["user_id"])[1:]) % 2
        shown = row if app else {**row, "event_time": landing.iso_time(row["event_time"])}  # type: ignore[arg-type]
        file = lines[f"{'app' if app else 'web'}-{half}"]
        file.append(landing.json_line(shown))
        file += bad_rows.get(index, [])
    for name, file in lines.items():
        landing.write_lines(folder / f"{name}.jsonl.gz", file)
    return reasons


def _broken(**changes: object):
    return lambda row: landing.json_line({**row, **changes})


# What goes wrong in real logs: each makes a bad row out of a good one, which stays.
_BAD_ROWS_BY_REASON = {
    "invalid_json": lambda row: landing.json_line(row)[:-20],
    "invalid_value": _broken(price=-1.0),
    "unknown_item": lambda row: landing.json_line({**row, "event_id": row["event_id"] + "-x", "item_id": "withdrawn"}),
    "other_day": lambda row: landing.json_line({**row, "event_time": row["event_time"] - DAY_MILLISECONDS}),
    "duplicate_event_id": landing.json_line,
    "wrong_type": _broken(position="first"),
    "missing_field": _broken(user_id=None),
    "future_time": lambda row: landing.json_line({**row, "event_time": row["event_time"] + 2 * DAY_MILLISECONDS}),
    "unknown_event_type": _broken(event_type="hover"),
}


def _write_truth(
    root: Path, simulated: SimulatedDay, settings: SimulatorSettings, day: str, bad_rows: dict[str, int]
) -> None:
    folder = landing.day_folder(root, day)
    folder.mkdir(parents=True, exist_ok=True)
    users, items = simulated.users, simulated.items
    truth = {
        "what": "the true preferences behind the simulated logs; to measure what was learned, never read by the night",
        "aspects": ASPECTS,
        "click": {"gain": CLICK_GAIN, "threshold": CLICK_THRESHOLD},
        "settings": settings.model_dump(),
        "bad_rows": bad_rows,
        "events": {
            "impression": int(simulated.shown.size),
            "click": int(simulated.clicked.sum()),
            "conversion": int(simulated.converted.sum()),
            "dislike": int(simulated.disliked.sum()),
        },
    }
    (folder / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")
    user_columns = {name: _column(values) for name, values in vars(users).items()}
    pq.write_table(pa.table({"user_id": users.ids, **user_columns}), folder / "users.parquet")
    item_columns = {name: _column(values) for name, values in vars(items).items()}
    pq.write_table(pa.table({"item_id": items.ids, "bid": simulated.bids, **item_columns}), folder / "items.parquet")
    slate = simulated.shown.shape[1]
    compact_day = day.replace("-", "")
    request_ids = np.array([f"r{compact_day}-{number:07d}" for number in range(len(simulated.user))])
    impressions = {
        "request_id": request_ids.repeat(slate),
        "user_id": np.array(users.ids)[simulated.user].repeat(slate),
        "item_id": np.array(items.ids)[simulated.shown.ravel()],
        "position": np.tile(np.arange(slate), len(simulated.user)),
        **{name: simulated.aspects[:, :, index].ravel() for index, name in enumerate(ASPECTS)},
        "utility": simulated.utility.ravel(),
        "click_probability": simulated.click_probability.ravel(),
    }
    pq.write_table(pa.table(impressions), folder / "impressions.parquet")


def _column(values: np.ndarray) -> pa.Array:
    return pa.array(values if values.ndim == 1 else list(values))
