"""The simulated marketplace as a data set: what the benchmarks train and measure on where the truth must be known.

    days 0 to 2   supervised training; preference pairs for the aggregator
    day 3         feedback: prompts of the policy optimisation
    day 4         evaluation: half of the users for validation, the others for the test
    after that    the simulated A/B test (`benchmarks.simulated_ab`)

The business reward reads days 0 to 3. No user is held out of a fit: what is evaluated lies on a later day instead.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from benchmarks.world import Decisions, World
from sgrec_core import simulator
from sgrec_core.aggregator.features import state_features
from sgrec_core.aggregator.network import Pairs, fit
from sgrec_core.generator import ItemTrie
from sgrec_core.generator.packing import Windows, cut_windows
from sgrec_core.hashing import hash_share
from sgrec_core.items import TextEncoder, embeddings_cache, item_text
from sgrec_core.items.codes import assign_codes
from sgrec_core.items.fitting import fit_quantiser
from sgrec_core.judge.engines.embedding import EmbeddingEngine
from sgrec_core.judge.request import JudgeRequest
from sgrec_core.judge.rubric import load_rubric
from sgrec_core.logs.context import DAYPARTS
from sgrec_core.logs.text import canonical_json
from sgrec_core.policy.trainer import BusinessReward, SemanticReward
from sgrec_core.rewards.business import EcpmModel
from sgrec_core.rewards.business_context import BusinessContext
from sgrec_core.settings import (
    AggregatorSettings,
    BusinessSettings,
    ItemSettings,
    JudgeSettings,
    Settings,
    SimulatorSettings,
    StateSettings,
)
from sgrec_core.simulator.vocabulary import PLACEMENTS

MAX_HISTORY = 20
PAIR_ACCURACY = 0.87
"""How often the noisy oracle puts two items of the catalogue in the order of their true utility. More than the paper's
judge manages of its pairs (PairAUC .8116), which are harder: pairs of one slate. Of one group's it orders .81."""


@dataclass(frozen=True)
class Market:
    """A marketplace and how its days are used, in this order: supervised, feedback, evaluation, then an A/B test's."""

    settings: SimulatorSettings
    first_day: str
    supervised_days: int
    evaluation_days: int = 1

    def days(self, start: int, count: int) -> list[str]:
        """``count`` days from the ``start``-th on (0: the first)."""
        first = date.fromisoformat(self.first_day)
        return [(first + timedelta(days=start + number)).isoformat() for number in range(count)]

    @property
    def logged_days(self) -> list[str]:
        """The days that the logging policy filled: supervised ones, one of feedback, those of evaluation."""
        return self.days(0, self.supervised_days + 1 + self.evaluation_days)

    def days_after(self, count: int) -> list[str]:
        """The ``count`` days after the logged ones."""
        return self.days(len(self.logged_days), count)


# Not the seed of the default marketplace, on which the defaults were chosen. No new items: one catalogue and one trie
# serve all days. The first day is a Friday, so that both kinds of days are trained on.
MARKET = Market(
    SimulatorSettings(seed=11, users=3000, items=300, new_items_per_day=0, requests_per_user=5.0, slate=8),
    first_day="2026-01-02",
    supervised_days=3,
)
SHORT = Market(
    SimulatorSettings(seed=11, users=150, items=60, new_items_per_day=0, requests_per_user=4.0, slate=6),
    first_day="2026-01-02",
    supervised_days=3,
)
"""To see that everything runs; its figures mean nothing."""


@dataclass(frozen=True)
class Clicks:
    """C clicks, sorted by user and time."""

    user: np.ndarray
    """[C] user numbers."""
    item: np.ndarray
    """[C] item indices."""
    time: np.ndarray
    """[C] milliseconds since 1970."""

    def histories(self, users: np.ndarray, times: np.ndarray) -> np.ndarray:
        """[N, MAX_HISTORY] the latest items that each user clicked strictly before its time, -1 after the end."""
        # User and time as one sorted key; times fit into 42 bits.
        keys = (self.user << 42) + self.time
        start, end = np.searchsorted(keys, users << 42), np.searchsorted(keys, (users << 42) + times)
        place = np.maximum(start, end - MAX_HISTORY)[:, None] + np.arange(MAX_HISTORY)
        return np.where(place < end[:, None], self.item[np.minimum(place, len(keys) - 1)], -1)


@dataclass(frozen=True)
class Log:
    """What the days of the logging policy left behind, R requests sorted by day, user and time; and the truth."""

    market: Market
    users: simulator.Users
    items: simulator.Items
    texts: list[str]
    """Of each item."""
    profiles: list[str]
    """Of each user, canonical JSON."""
    events: list[pa.Table]
    """Of each day, with the columns of the table ``events`` that the business reward reads."""
    clicks: Clicks
    day: np.ndarray
    """Number of the day [R]."""
    user: np.ndarray
    """[R]"""
    time: np.ndarray
    """Milliseconds since 1970 [R]."""
    placement: np.ndarray
    """[R]"""
    shown: np.ndarray
    """[R, slate]"""
    clicked: np.ndarray
    """Bool [R, slate]."""
    disliked: np.ndarray
    """Bool [R, slate]."""
    click_time: np.ndarray
    """Milliseconds since 1970 [R, slate], larger than any time where nothing was clicked."""
    preference: np.ndarray
    """The truth: the aspects of each item of the catalogue, weighed by the user's weights [R, items] float32."""
    propensity: np.ndarray | None = None
    """The probability of what was shown [R, slate], where `read_log` was asked for it."""

    def decisions(self, day: int) -> np.ndarray:
        """Requests of the day that have a click and a history."""
        rows = np.flatnonzero((self.day == day) & self.clicked.any(axis=1))
        return rows[self.histories(rows)[:, 0] >= 0]

    def histories(self, rows: np.ndarray) -> np.ndarray:
        """Histories [N, MAX_HISTORY] of requests."""
        return self.clicks.histories(self.user[rows], self.time[rows])

    def targets(self, rows: np.ndarray) -> np.ndarray:
        """The item that was clicked first [N], of requests with a click."""
        return self.shown[rows, self.click_time[rows].argmin(axis=1)]

    def last_histories(self) -> np.ndarray:
        """Histories of all users [U, MAX_HISTORY] when the logged days are over."""
        users = np.arange(len(self.profiles))
        return self.clicks.histories(users, np.full(len(users), self.clicks.time.max() + 1))

    def windows(self, *, feedback: bool = False) -> Windows:
        """The clicks of the supervised days as training windows: all of a user but the first are targets.

        Those of the feedback day instead, with what came before them to read, where ``feedback`` is set.
        """
        days, last = self.market.logged_days, self.market.supervised_days + feedback
        kept = self.clicks.time < _midnight(days[last])
        known = self.clicks.time[kept] < _midnight(days[last - 1 if feedback else 0])
        user, item = self.clicks.user[kept], self.clicks.item[kept]
        ends = np.flatnonzero(np.diff(user)) + 1
        first_target = [max(1, int(part.sum())) for part in np.split(known, ends)]
        return cut_windows(np.split(item, ends), first_target, MAX_HISTORY)

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Preference pairs of the supervised days: requests, preferred items and others, each [P].

        The item clicked first over items of the same slate that were not clicked, disliked ones first, as many as
        `jobs.build_states` takes of a decision and as many in all as `jobs.score_aspects` has judged.
        """
        rows = np.concatenate([self.decisions(day) for day in range(self.market.supervised_days)])
        draw = np.random.default_rng(0)
        order = self.disliked[rows] + draw.random(self.shown[rows].shape)
        order[self.clicked[rows]] = -1
        others = np.argsort(-order, axis=1)[:, : StateSettings().max_pairs_per_decision]
        request, place = np.nonzero(np.take_along_axis(order, others, axis=1) >= 0)
        chosen = draw.permutation(len(request))[: JudgeSettings().max_pairs]
        request, place = request[chosen], place[chosen]
        return rows[request], self.targets(rows[request]), self.shown[rows[request], others[request, place]]

    def states(self, rows: np.ndarray) -> pa.Table:
        """Requests as rows of ``user_states``: columns user_id, as_of, history, profile, context."""
        item_ids = np.array(self.items.ids)
        contexts = []
        for time, placement in zip(self.time[rows].tolist(), self.placement[rows].tolist(), strict=True):
            moment = datetime.fromtimestamp(time / 1000, UTC)
            daypart = next(name for name, hours in DAYPARTS.items() if moment.hour in hours)
            context = {"daypart": daypart, "placement": PLACEMENTS[placement], "weekday": f"{moment:%A}"}
            contexts.append(canonical_json(context))
        histories = [item_ids[history[history >= 0]].tolist() for history in self.histories(rows)]
        return pa.table(
            {
                "user_id": pa.array(np.array(self.users.ids)[self.user[rows]].tolist()),
                "as_of": pa.array(self.time[rows]).cast(pa.timestamp("ms", "UTC")),
                "history": pa.array(histories, pa.list_(pa.string())),
                "profile": pa.array([self.profiles[user] for user in self.user[rows]]),
                "context": pa.array(contexts),
            }
        )


@lru_cache(maxsize=2)
def read_log(market: Market, *, propensities: bool = False) -> Log:
    """Simulate the logged days of ``market``; ``propensities`` change nothing else and take most of the time."""
    tables, days = [], []
    for number, day in enumerate(market.logged_days):
        simulated, preference = _simulate(market, day, propensities)
        table = pa.Table.from_pylist(simulator.event_rows(simulated, day))
        click_time = np.full(simulated.shown.shape, np.iinfo(np.int64).max)
        clicks = table.filter(pc.equal(table["event_type"], "click"))
        # A request's id ends with the number of its slate.
        slates = [int(request.rsplit("-", 1)[1]) for request in clicks["request_id"].to_pylist()]
        click_time[slates, clicks["position"].to_numpy()] = clicks["event_time"].to_numpy()
        moments = table["event_time"].cast(pa.timestamp("ms", "UTC"))
        tables.append(table.set_column(table.column_names.index("event_time"), "event_time", moments))
        days.append(
            {
                "day": np.full(len(simulated.user), number),
                "user": simulated.user,
                "time": _midnight(day) + simulated.time,
                "placement": simulated.placement,
                "shown": simulated.shown,
                "clicked": simulated.clicked,
                "disliked": simulated.disliked,
                "click_time": click_time,
                "preference": preference,
                **({} if simulated.propensity is None else {"propensity": simulated.propensity}),
            }
        )
    columns = {name: np.concatenate([part[name] for part in days]) for name in days[0]}
    request, position = np.nonzero(columns["clicked"])
    user, time = columns["user"][request], columns["click_time"][request, position]
    order = np.lexsort((time, user))
    rows = simulator.catalogue_rows(simulated.items)
    texts = [[str(row[name]) for name in ("title", "brand", "category", "description")] for row in rows]
    profiles = simulator.profile_rows(simulated.users)
    return Log(
        market=market,
        users=simulated.users,
        items=simulated.items,
        texts=[item_text(*text) for text in texts],
        profiles=[canonical_json({name: row[name] for name in row if name != "user_id"}) for row in profiles],
        events=tables,
        clicks=Clicks(user[order], columns["shown"][request, position][order], time[order]),
        **columns,
    )


def _simulate(market: Market, day: str, propensities: bool) -> tuple[simulator.SimulatedDay, np.ndarray]:
    """A day, and the true preference of each request for every item [S, items], in the same order."""
    weights = simulator.draw_users(market.settings).weights
    seen: list[tuple[np.ndarray, ...]] = []

    def policy(requests: simulator.Requests) -> np.ndarray:
        preference = np.einsum("ra,arn->rn", weights[requests.user], requests.aspects)
        seen.append((requests.user, requests.time, preference.astype(np.float32)))
        return simulator.logging_policy(requests)

    known = simulator.logging_propensities if propensities else None
    simulated = simulator.simulate_day(market.settings, day, market.first_day, policy=policy, propensities=known)
    user, time, preference = (np.concatenate(column) for column in zip(*seen, strict=True))
    # As `simulate_day` sorts, requests of one moment included: both sorts are stable.
    return simulated, preference[np.lexsort((time, user))]


def _midnight(day: str) -> int:
    """Milliseconds since 1970."""
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1000)


def evaluated(log: Log) -> tuple[np.ndarray, np.ndarray]:
    """Decisions of the first evaluation day: of half of the users for validation, of the others for the test."""
    rows = log.decisions(log.market.supervised_days + 1)
    in_validation = hash_share([log.users.ids[user] for user in log.user[rows]], "simulated-validation") < 0.5
    return rows[in_validation], rows[~in_validation]


def world(*, short: bool, cache: Path, market: Market | None = None) -> World:
    """The market's days as a `World`; ``cache`` keeps text embeddings between calls.

    ``market``: another than `SHORT` or `MARKET`; validation and test are of its first evaluation day.

    A decision is a request with a click; its target is the item clicked first; its history, strictly before the
    request, is not empty. Judges:

    - ``embedding``: the night's embedding judge, weighed by an aggregator fitted on pairs of the supervised days;
    - ``oracle``: the true aspects in the user's true state, by the user's true weights. It knows all but what no text
      tells (`simulator.Items.quality`): an upper bound for judges, not one of them;
    - ``noisy_oracle``: the same with noise, fixed for each decision and item; see `PAIR_ACCURACY`.
    """
    log = read_log(market or (SHORT if short else MARKET))
    prompts = log.decisions(log.market.supervised_days)
    validation, test = evaluated(log)

    tokens = ItemSettings()
    vectors = TextEncoder(embeddings_cache(_settings(cache)), threads=1).encode(log.texts)
    quantiser = fit_quantiser(tokens.quantiser, vectors, tokens.levels, tokens.codebook_size, tokens.seed)
    codes = assign_codes(log.items.ids, vectors, quantiser, {})

    oracle = log.preference[prompts]
    noise = np.random.default_rng(0).normal(size=oracle.shape).astype(np.float32)
    noisy_oracle = oracle + noise * noise_for(
        PAIR_ACCURACY, oracle, oracle + simulator.QUALITY_GAIN * log.items.quality
    )
    return World(
        name="simulator",
        trie=ItemTrie.build(np.array([codes[item] for item in log.items.ids]), quantiser.codebook_size),
        windows=log.windows(),
        feedback=_decisions(log, prompts),
        business=business_reward(log, prompts),
        semantic={
            "embedding": _embedding_judge(log, prompts, vectors, cache),
            "oracle": lambda rows, items: oracle[rows[:, None], items],
            "noisy_oracle": lambda rows, items: noisy_oracle[rows[:, None], items],
        },
        validation=_decisions(log, validation),
        test=_decisions(log, test),
    )


def noise_for(accuracy: float, scores: np.ndarray, truth: np.ndarray) -> float:
    """Deviation of the noise that makes ``scores`` [N, items] agree with ``truth`` on a share ``accuracy`` of pairs.

    A pair is two items of one row; 200,000 are drawn, fixed by a seed. The noise is Gaussian and drawn for each entry,
    so that a gap d keeps its sign with probability Phi(d / (sqrt(2) * deviation)).
    """
    rows, first, second = np.random.default_rng(1).integers(0, [[len(scores)], *[[scores.shape[1]]] * 2], (3, 200_000))
    rows, first, second = (index[first != second] for index in (rows, first, second))
    gap = torch.from_numpy((scores[rows, first] - scores[rows, second]).astype(np.float64))
    gap *= torch.from_numpy(np.sign(truth[rows, first] - truth[rows, second]))
    low, high = 1e-6, 10.0
    for _ in range(60):
        middle = (low * high) ** 0.5
        agreement = float(torch.special.ndtr(gap / (2**0.5 * middle)).mean())
        low, high = (middle, high) if agreement > accuracy else (low, middle)
    return low


def _settings(cache: Path) -> Settings:
    """Where the encoder keeps its vectors."""
    return Settings(home=cache, threads=1)


def _decisions(log: Log, rows: np.ndarray) -> Decisions:
    return Decisions(log.histories(rows), log.targets(rows), log.user[rows])


def business_reward(log: Log, rows: np.ndarray) -> BusinessReward:
    """eCPM for requests ``rows``, fitted as `jobs.fit_business_reward` does on the night of the feedback day."""
    catalogue = simulator.catalogue_rows(log.items)
    days = log.events[: log.market.supervised_days + 1]
    context = BusinessContext(
        pa.concat_tables(days),
        pa.Table.from_pylist(catalogue).select(["item_id", "price", "category", "brand"]),
        pa.table({"user_id": log.users.ids, "profile": log.profiles}),
    )
    settings = BusinessSettings()
    model = EcpmModel.fit(context, seed=settings.seed, trees=settings.trees, learning_rate=settings.learning_rate)
    states, item_ids = log.states(rows), np.array(log.items.ids, dtype=object)
    return lambda chosen, items: model.reward(states.take(pa.array(chosen)), item_ids[items].tolist(), context)


def _embedding_judge(log: Log, rows: np.ndarray, vectors: np.ndarray, cache: Path) -> SemanticReward:
    """What a night makes of the embedding judge: its scores for requests ``rows``, weighed by the aggregator."""
    engine = EmbeddingEngine(_settings(cache), load_rubric(has_context=True))

    def scores(states: pa.Table, items: np.ndarray) -> np.ndarray:
        """Of items [N, G] in N states: [N, G, aspects]."""
        requests = []
        for number, state in enumerate(states.to_pylist()):
            history = tuple(log.texts[int(item[1:])] for item in state["history"])
            requests += [
                JudgeRequest(
                    state_id=str(number),
                    item_id=log.items.ids[item],
                    item_hash="",
                    history_texts=history,
                    profile=state["profile"],
                    context=state["context"],
                    item_text=log.texts[item],
                )
                for item in items[number].tolist()
            ]
        return np.array([result.scores for result in engine.score(requests)]).reshape(*items.shape, -1)

    settings = AggregatorSettings()

    def features(states: pa.Table) -> np.ndarray:
        return state_features(states, log.items.ids, vectors, seed=settings.seed)

    asked, preferred, others = log.pairs()
    states = log.states(asked)
    judged = scores(states, np.stack([preferred, others], axis=1))
    aggregator, _ = fit(
        Pairs(states["user_id"].to_pylist(), features(states), judged[:, 0], judged[:, 1]),
        engine.rubric.aspect_ids,
        settings,
    )
    prompts = log.states(rows)
    weights = aggregator.weights(features(prompts))

    def reward(chosen: np.ndarray, items: np.ndarray) -> np.ndarray:
        found = scores(prompts.take(pa.array(chosen)), items)
        return (found * weights[chosen][:, None]).sum(axis=-1)

    return reward
