"""The business reward on logs: eCPM = 1000 x calibrated probability of a click x bid.

A gradient-boosted click model (LightGBM) over counts, prices, context and profile; then a sigmoid fitted on users
that the trees did not see (Platt), which keeps the order within a group and makes the probabilities honest. Every
feature of an impression or a state at time t counts only events strictly before t; one function computes them for
training and for scoring. The tables read are windows of days up to the night's; validation users are left out.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core.errors import InputError
from sgrec_core.hashing import hash_share

_MICROSECONDS = 3_600_000_000
_PRIOR_STRENGTH = 20.0
"""Impressions that the global click rate weighs in a smoothed rate."""
_MAX_PROFILE_KEYS = 8
_MAX_CATEGORIES = 200
_TARGETS = ("click", "conversion")


class _Times:
    """Per-key event times, sorted once, to be asked "how many, and which was the last, strictly before t"."""

    def __init__(self, keys: np.ndarray, times: np.ndarray) -> None:
        self._distinct = np.unique(times)
        self._span = len(self._distinct) + 1
        combined = keys.astype(np.int64) * self._span + np.searchsorted(self._distinct, times)
        self._order = np.argsort(combined, kind="stable")
        self._combined = combined[self._order]

    def count_before(self, keys: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Events of each key strictly before its time: float64, the shape of ``keys``; 0 for key -1."""
        start, end = self._range(keys, times)
        return (end - start).astype(np.float64)

    def last_before(self, keys: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Row of the last event of each key strictly before its time, or -1."""
        start, end = self._range(keys, times)
        if len(self._order) == 0:
            return np.full(keys.shape, -1)
        return np.where(end > start, self._order[np.maximum(end - 1, 0)], -1)

    def _range(self, keys: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        base = keys.astype(np.int64) * self._span
        start = np.searchsorted(self._combined, base)
        end = np.searchsorted(self._combined, base + np.searchsorted(self._distinct, times))
        return start, np.where(keys < 0, start, end)


@dataclass
class Queries:
    """What is asked of the click model, one element per (situation, item); indices point into a `BusinessContext`."""

    user: np.ndarray
    """int64 index of the user, -1 for a user without events."""
    item: np.ndarray
    """int64 index of the item, -1 for an unknown one."""
    time: np.ndarray
    """int64 microseconds since the epoch."""
    placement: np.ndarray
    """int64 index of the placement, -1 when unknown."""
    position: np.ndarray
    """float64 rank in the slate; NaN when unknown."""
    price: np.ndarray
    """float64, NaN when unknown."""
    bid: np.ndarray
    """float64, NaN when unknown."""
    profile: list[str | None]
    """Canonical JSON of the profile."""


class BusinessContext:
    """Events of a window of days with what is known of items and users: what features are counted from.

    ``events``, ``items`` and ``users`` have the columns of the tables of the same names; only rows of role
    ``logged`` count, and ``keep_user`` (ids [N] -> bool [N]) leaves out users that no fit may read.
    """

    def __init__(
        self,
        events: pa.Table,
        items: pa.Table,
        users: pa.Table,
        *,
        keep_user: Callable[[Sequence[str]], np.ndarray] | None = None,
    ) -> None:
        if "role" in events.column_names:
            events = events.filter(pc.equal(events["role"], "logged"))
        if keep_user is not None:
            kept = pc.unique(events["user_id"]).to_pylist()
            allowed = [user for user, keep in zip(kept, keep_user(kept), strict=True) if keep] if kept else []
            events = events.filter(pc.is_in(events["user_id"], value_set=pa.array(allowed, pa.string())))
        events = events.sort_by([("event_time", "ascending"), ("event_id", "ascending")])
        self.item_ids: list[str] = items["item_id"].to_pylist()
        self.item_index = {item: index for index, item in enumerate(self.item_ids)}
        self.item_price = _floats(items["price"])
        self.item_category = [_leaf(path) for path in items["category"].to_pylist()]
        self.item_brand: list[str | None] = items["brand"].to_pylist()
        self._category = _indices(self.item_category)
        self._brand = _indices(self.item_brand)
        self.profiles: dict[str, str] = dict(
            zip(users["user_id"].to_pylist(), users["profile"].to_pylist(), strict=True)
        )
        self.user_index = {user: index for index, user in enumerate(sorted(set(events["user_id"].to_pylist())))}
        placements = sorted({placement for placement in events["placement"].to_pylist() if placement is not None})
        self.placement_index = {placement: index for index, placement in enumerate(placements)}

        self._user = _look_up(events["user_id"], self.user_index)
        self._item = _look_up(events["item_id"], self.item_index)
        self._time = _microseconds(events["event_time"])
        self._type = np.array(events["event_type"].to_pylist(), dtype=object)
        self._request = events["request_id"].to_pylist()
        self._placement = _look_up(events["placement"], self.placement_index)
        self._position = _floats(events["position"])
        self._price = _floats(events["price"])
        self._bid = _floats(events["bid"])

        impressions = self._type == "impression"
        clicks = np.isin(self._type, _TARGETS)
        zero = np.zeros(len(self._type), dtype=np.int64)
        self._seen = {name: self._times(name, zero, impressions) for name in _GROUPINGS}
        self._clicked = {name: self._times(name, zero, clicks) for name in _GROUPINGS}
        self._converted = {name: self._times(name, zero, self._type == "conversion") for name in ("item", "user")}
        self._disliked = {
            name: self._times(name, zero, self._type == "dislike") for name in ("item", "user", "user_category")
        }
        bids = np.isfinite(self._bid) & (self._item >= 0)
        self._bid_rows = np.flatnonzero(bids)
        self._bids = _Times(self._item[bids], self._time[bids])

    @property
    def has_impressions_with_bids(self) -> bool:
        """Whether eCPM can be computed: some item was shown to someone with a bid."""
        return bool(((self._type == "impression") & np.isfinite(self._bid)).any())

    @classmethod
    def from_lake(cls, lake: Any, day: str, settings: Any) -> "BusinessContext":
        """The window of ``settings.business.window_days`` days up to ``day``, without validation users.

        ``lake`` is a `sgrec_core.lake.Lake`, ``settings`` the `Settings`; items and users are the day's snapshots.
        """
        from sgrec_core.hashing import is_validation_user

        share = settings.states.validation_share
        return cls(
            lake.read("events", where={"day": window_days(day, settings.business.window_days), "role": "logged"}),
            lake.read("items", where={"day": day}, columns=["item_id", "price", "category", "brand"]),
            lake.read("users", where={"day": day}, columns=["user_id", "profile"]),
            keep_user=lambda users: ~is_validation_user(users, share),
        )

    def impressions(self) -> tuple[Queries, np.ndarray, np.ndarray]:
        """Logged impressions of known items as queries, their labels and their users.

        Label 1: a click or conversion of the item in the same request by the same user. Returns (queries, float64
        [N], int64 user index [N]).
        """
        answered = {
            (user, request, item)
            for user, request, item, kind in zip(self._user, self._request, self._item, self._type, strict=True)
            if kind in _TARGETS
        }
        rows = np.flatnonzero((self._type == "impression") & (self._item >= 0))
        labels = np.array(
            [(self._user[row], self._request[row], self._item[row]) in answered for row in rows], dtype=np.float64
        )
        names = list(self.user_index)
        profiles = {index: self.profiles.get(name) for index, name in enumerate(names)}
        price = np.where(np.isfinite(self._price[rows]), self._price[rows], self.item_price[self._item[rows]])
        queries = Queries(
            user=self._user[rows],
            item=self._item[rows],
            time=self._time[rows],
            placement=self._placement[rows],
            position=self._position[rows],
            price=price,
            bid=self._bid[rows],
            profile=[profiles[user] for user in self._user[rows]],
        )
        return queries, labels, self._user[rows]

    def last_bids(self, items: np.ndarray, times: np.ndarray) -> np.ndarray:
        """The last bid of each item strictly before each time: float64, the shape of ``items``.

        An item without an earlier bid gets the median, over the items that have one, of their last bid before the
        full hour that precedes the time; when there is none either, the median of the items' first bids of the
        window (a price level, not a price: the only value that may stem from later than the time).
        """
        if len(self._bid_rows) == 0:
            raise InputError("events: no impression has a bid, so that there is no eCPM; use the ranking reward")
        last = self._bids.last_before(items, times)
        values = np.where(last >= 0, self._bid[self._bid_rows[last]], np.nan)
        unknown = ~np.isfinite(values)
        if unknown.any():
            hours = times // _MICROSECONDS
            everyone = np.arange(len(self.item_ids))
            first = np.unique(self._item[self._bid_rows], return_index=True)[1]
            floor = float(np.median(self._bid[self._bid_rows[first]]))
            for hour in np.unique(hours[unknown]):
                rows = self._bids.last_before(everyone, np.full(len(everyone), hour * _MICROSECONDS))
                known = self._bid[self._bid_rows[rows[rows >= 0]]]
                values[unknown & (hours == hour)] = float(np.median(known)) if len(known) else floor
        return values

    def features(self, queries: Queries, encodings: "ProfileEncoding") -> tuple[np.ndarray, list[str]]:
        """Features float64 [N, F] and their names. Counts are of events strictly before each query's time."""
        time = queries.time
        category = np.where(queries.item >= 0, self._category[queries.item], -1)
        brand = np.where(queries.item >= 0, self._brand[queries.item], -1)
        keys = {
            name: grouping(queries.user, queries.item, category, brand, self) for name, grouping in _GROUPINGS.items()
        }
        seen = {name: self._seen[name].count_before(keys[name], time) for name in _GROUPINGS}
        clicked = {name: self._clicked[name].count_before(keys[name], time) for name in _GROUPINGS}
        rate = (clicked["all"] + 1.0) / (seen["all"] + 20.0)
        columns: dict[str, np.ndarray] = {}
        for name in _GROUPINGS:
            if name == "all":
                continue
            columns[f"{name}_click_rate"] = (clicked[name] + _PRIOR_STRENGTH * rate) / (seen[name] + _PRIOR_STRENGTH)
            columns[f"{name}_clicks"] = np.log1p(clicked[name])
            columns[f"{name}_impressions"] = np.log1p(seen[name])
        for name, times in self._converted.items():
            columns[f"{name}_conversions"] = np.log1p(times.count_before(keys[name], time))
        for name, times in self._disliked.items():
            columns[f"{name}_dislikes"] = np.log1p(times.count_before(keys[name], time))
        columns["share_of_clicks_in_category"] = clicked["user_category"] / np.maximum(clicked["user"], 1)
        columns["share_of_clicks_on_brand"] = clicked["user_brand"] / np.maximum(clicked["user"], 1)
        columns["price"] = np.log1p(queries.price)
        columns["bid"] = np.log1p(queries.bid)
        columns["hour"] = (time // _MICROSECONDS % 24).astype(np.float64)
        columns["position"] = queries.position
        columns["placement"] = _missing(queries.placement)
        columns["category"] = encodings.encode("item:category", [_at(self.item_category, i) for i in queries.item])
        columns["brand"] = encodings.encode("item:brand", [_at(self.item_brand, i) for i in queries.item])
        columns.update(encodings.encode_profiles(queries.profile))
        return np.column_stack(list(columns.values())), list(columns)

    def _times(self, name: str, zero: np.ndarray, mask: np.ndarray) -> _Times:
        mask = mask & (self._item >= 0)
        item = self._item[mask]
        keys = _GROUPINGS.get(name, _GROUPINGS["all"])(
            self._user[mask], item, self._category[item], self._brand[item], self
        )
        return _Times(keys, self._time[mask])


def _pair(first: np.ndarray, second: np.ndarray, size: int) -> np.ndarray:
    """One key for two; -1 where either is unknown."""
    return np.where((first < 0) | (second < 0), -1, first * max(size, 1) + second)


_GROUPINGS: dict[str, Callable[..., np.ndarray]] = {
    "all": lambda user, item, category, brand, context: np.zeros_like(user),
    "item": lambda user, item, category, brand, context: item,
    "user": lambda user, item, category, brand, context: user,
    "category": lambda user, item, category, brand, context: category,
    "brand": lambda user, item, category, brand, context: brand,
    "user_item": lambda user, item, category, brand, context: _pair(user, item, len(context.item_ids)),
    "user_category": lambda user, item, category, brand, context: _pair(user, category, len(context.item_ids)),
    "user_brand": lambda user, item, category, brand, context: _pair(user, brand, len(context.item_ids)),
}
"""What events are counted by."""


@dataclass
class ProfileEncoding:
    """Categories and profile fields as numbers, fixed at the fit; a value that was not there is missing later."""

    vocabularies: dict[str, list[str]]
    numeric: list[str]

    @classmethod
    def fit(cls, context: BusinessContext) -> "ProfileEncoding":
        """Vocabularies of item category and brand and of the profile fields that most users have."""
        parsed = [_profile(context.profiles.get(user)) for user in context.user_index]
        counts: dict[str, int] = {}
        for profile in parsed:
            for key in profile:
                counts[key] = counts.get(key, 0) + 1
        chosen = sorted(counts, key=lambda key: (-counts[key], key))[:_MAX_PROFILE_KEYS]
        vocabularies = {
            "item:category": _common(context.item_category),
            "item:brand": _common(context.item_brand),
        }
        numeric = []
        for key in sorted(chosen):
            values = [profile[key] for profile in parsed if key in profile]
            if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
                numeric.append(key)
            else:
                vocabularies[f"profile:{key}"] = _common([str(value) for value in values])
        return cls(vocabularies, numeric)

    def encode(self, name: str, values: Sequence[str | None]) -> np.ndarray:
        """Positions of ``values`` in a vocabulary, NaN for one that is not in it: float64 [N]."""
        positions = {value: float(index) for index, value in enumerate(self.vocabularies[name])}
        return np.array([math.nan if value is None else positions.get(value, math.nan) for value in values])

    def encode_profiles(self, profiles: Sequence[str | None]) -> dict[str, np.ndarray]:
        """One column per profile field; a profile that many rows share is parsed once."""
        distinct = {text: index for index, text in enumerate(dict.fromkeys(profiles))}
        parsed = [_profile(text) for text in distinct]
        rows = np.array([distinct[text] for text in profiles], dtype=np.int64)
        columns: dict[str, np.ndarray] = {}
        for name in self.vocabularies:
            if name.startswith("profile:"):
                key = name.removeprefix("profile:")
                texts = [str(profile[key]) if key in profile else None for profile in parsed]
                columns[name] = self.encode(name, texts)[rows]
        for key in self.numeric:
            numbers = [profile.get(key) for profile in parsed]
            values = [float(n) if isinstance(n, (int, float)) else math.nan for n in numbers]
            columns[f"profile:{key}"] = np.array(values, dtype=np.float64)[rows]
        return columns


class EcpmModel:
    """A calibrated click model and the eCPM that follows from it."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        import lightgbm

        self._config = dict(config)
        self._encodings = ProfileEncoding(config["vocabularies"], config["numeric_profile_fields"])
        self._booster = lightgbm.Booster(model_str=config["booster"])

    @classmethod
    def fit(
        cls, context: BusinessContext, *, seed: int, trees: int = 200, learning_rate: float = 0.05, threads: int = 1
    ) -> "EcpmModel":
        """Fit on the context's impressions: 70% of users for trees, 15% for calibration, 15% to report on.

        Raises InputError when the impressions are too few, or all clicked or none. ``metrics`` then holds log loss,
        AUC and the expected calibration error before and after calibration, all on the users reported on.
        """
        import lightgbm

        queries, labels, users = context.impressions()
        names = list(context.user_index)
        share = hash_share([names[user] for user in users], f"business-{seed}") if len(users) else np.empty(0)
        parts = {"trees": share < 0.7, "calibration": (share >= 0.7) & (share < 0.85), "report": share >= 0.85}
        for part, mask in parts.items():
            if len(np.unique(labels[mask])) < 2:
                raise InputError(
                    f"events: the {part} share of {int(mask.sum())} impressions (of {len(labels)}) has "
                    f"{int(labels[mask].sum())} clicks; a click model needs impressions with and without clicks in "
                    "each share: give it more days (business.window_days) or users"
                )
        encodings = ProfileEncoding.fit(context)
        features, feature_names = context.features(queries, encodings)
        categorical = [
            name
            for name in feature_names
            if name in encodings.vocabularies or name in ("placement", "category", "brand")
        ]
        parameters = {
            "objective": "binary",
            "learning_rate": learning_rate,
            "num_leaves": 15,
            "min_data_in_leaf": 20,
            "feature_fraction": 0.8,
            "lambda_l2": 5.0,
            "cat_smooth": 20.0,
            "max_cat_to_onehot": 8,
            "seed": seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": threads,
            "verbose": -1,
        }
        # Feature names of the model's text must be plain; the readable ones stand in the config.
        columns = [f"f{index}" for index in range(len(feature_names))]

        def dataset(mask: np.ndarray, reference: Any = None) -> Any:
            return lightgbm.Dataset(
                features[mask],
                labels[mask],
                feature_name=columns,
                categorical_feature=[feature_names.index(name) for name in categorical],
                reference=reference,
                params={"verbose": -1},
            )

        training = dataset(parts["trees"])
        booster = lightgbm.train(
            parameters,
            training,
            num_boost_round=trees,
            valid_sets=[dataset(parts["calibration"], training)],
            callbacks=[lightgbm.early_stopping(20, verbose=False)],
        )
        raw = booster.predict(features, raw_score=True, num_iteration=booster.best_iteration)
        slope, intercept = _platt(raw[parts["calibration"]], labels[parts["calibration"]])
        report = parts["report"]
        before, after = _sigmoid(raw[report]), _sigmoid(slope * raw[report] + intercept)
        positions = queries.position[np.isfinite(queries.position)]
        gains = booster.feature_importance("gain", iteration=booster.best_iteration)
        config = {
            "kind": "ecpm",
            "booster": booster.model_to_string(num_iteration=booster.best_iteration),
            "features": feature_names,
            "placements": list(context.placement_index),
            "vocabularies": encodings.vocabularies,
            "numeric_profile_fields": encodings.numeric,
            "calibration": {"method": "sigmoid", "slope": slope, "intercept": intercept},
            "first_position": float(positions.min()) if len(positions) else None,
            "gain": {name: float(gain) for name, gain in zip(feature_names, gains, strict=True) if gain > 0},
            "metrics": {
                "impressions": len(labels),
                "clicks": int(labels.sum()),
                "trees": int(booster.best_iteration or booster.current_iteration()),
                "report_impressions": int(report.sum()),
                "auc": auc(labels[report], after),
                "log_loss_before": _log_loss(labels[report], before),
                "log_loss": _log_loss(labels[report], after),
                "ece_before": expected_calibration_error(labels[report], before),
                "ece": expected_calibration_error(labels[report], after),
            },
        }
        return cls(config)

    @property
    def metrics(self) -> dict[str, float]:
        """Figures of the fit; see `fit`."""
        return self._config["metrics"]

    def to_config(self) -> dict[str, Any]:
        """JSON of everything that `from_config` needs."""
        return self._config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "EcpmModel":
        """The model that `to_config` described."""
        return cls(config)

    def click_probability(self, queries: Queries, context: BusinessContext) -> np.ndarray:
        """Calibrated probability of a click for each query: float64 [N]."""
        if not len(queries.item):
            return np.empty(0)
        features, names = context.features(queries, self._encodings)
        # The window's placements may be others than those at the fit.
        known = {placement: float(index) for index, placement in enumerate(self._config["placements"])}
        here = [known.get(placement, math.nan) for placement in context.placement_index] + [math.nan]
        features[:, names.index("placement")] = np.array(here)[queries.placement]
        calibration = self._config["calibration"]
        raw = self._booster.predict(features, raw_score=True)
        return _sigmoid(calibration["slope"] * np.asarray(raw) + calibration["intercept"])

    def reward(self, states: pa.Table, items: Sequence[Sequence[str]], context: BusinessContext) -> np.ndarray:
        """eCPM of each candidate: float64 [N, G] for ``states`` (N rows of user_states) and N groups of G item ids.

        1000 x P(click | the state, the item in first position) x the item's last bid before ``as_of``
        (`BusinessContext.last_bids`). Placement comes from the state's context; the price is the catalogue's.
        Raises InputError for an item that is not in the catalogue.
        """
        if len(items) == 0:
            return np.empty((0, 0))
        group = len(items[0])
        flat = [item for candidates in items for item in candidates]
        unknown = next((item for item in flat if item not in context.item_index), None)
        if unknown is not None or len(flat) != len(items) * group or len(items) != states.num_rows:
            raise InputError(
                f"candidates: item {unknown!r} is not in the day's catalogue"
                if unknown is not None
                else f"candidates: {len(items)} groups for {states.num_rows} states; each state needs one group of {group}"
            )
        item = np.array([context.item_index[name] for name in flat], dtype=np.int64)
        users = states["user_id"].to_pylist()
        contexts = [_profile(text) for text in states["context"].to_pylist()]
        placement = np.array([context.placement_index.get(str(known.get("placement")), -1) for known in contexts])
        time = np.repeat(_microseconds(states["as_of"]), group)
        bid = context.last_bids(item, time)
        first = self._config["first_position"]
        queries = Queries(
            user=np.repeat(np.array([context.user_index.get(user, -1) for user in users], dtype=np.int64), group),
            item=item,
            time=time,
            placement=np.repeat(placement.astype(np.int64), group),
            position=np.full(len(item), math.nan if first is None else first),
            price=context.item_price[item],
            bid=bid,
            profile=[text for text in states["profile"].to_pylist() for _ in range(group)],
        )
        return (1000.0 * self.click_probability(queries, context) * bid).reshape(len(items), group)


def window_days(day: str, count: int) -> list[str]:
    """The ``count`` days that end with ``day``, oldest first."""
    from datetime import date, timedelta

    last = date.fromisoformat(day)
    return [(last - timedelta(days=back)).isoformat() for back in reversed(range(count))]


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> float:
    """Mean |click rate - mean probability| over ``bins`` bins of equal size, weighted by size."""
    order = np.argsort(probabilities, kind="stable")
    return float(
        sum(
            abs(labels[part].mean() - probabilities[part].mean()) * len(part)
            for part in np.array_split(order, bins)
            if len(part)
        )
        / max(len(labels), 1)
    )


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Probability that a clicked row scores above one that was not; ties count half."""
    distinct, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives = labels.sum()
    negatives = len(labels) - positives
    return float((ranks[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _platt(raw: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of the sigmoid over raw scores; the slope stays positive, so order is kept."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=100.0).fit(raw.reshape(-1, 1), labels)
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope > 0.05:
        return slope, intercept
    # Scores that say nothing on held-out users: keep their order, at the held-out click rate.
    rate = float(labels.mean())
    return 0.05, math.log(rate / (1 - rate)) - 0.05 * float(raw.mean())


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def _log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    clipped = np.clip(probabilities, 1e-12, 1 - 1e-12)
    return float(-(labels * np.log(clipped) + (1 - labels) * np.log(1 - clipped)).mean())


def _profile(text: str | None) -> dict[str, Any]:
    """The scalar fields of a JSON object; empty for none."""
    if not text:
        return {}
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError:
        return {}
    if not isinstance(parsed, dict):
        return {}
    return {key: value for key, value in parsed.items() if isinstance(value, (str, int, float, bool))}


def _leaf(path: str | None) -> str | None:
    """The most special part of a category path."""
    return path.rsplit(",", 1)[-1].strip() if path else None


def _common(values: Sequence[str | None]) -> list[str]:
    """The most frequent values, sorted."""
    counts: dict[str, int] = {}
    for value in values:
        if value is not None:
            counts[value] = counts.get(value, 0) + 1
    return sorted(sorted(counts, key=lambda value: (-counts[value], value))[:_MAX_CATEGORIES])


def _indices(values: Sequence[str | None]) -> np.ndarray:
    """Numbers of equal values, -1 for None; int64 [N]."""
    numbers = {value: index for index, value in enumerate(sorted({value for value in values if value is not None}))}
    return np.array([-1 if value is None else numbers[value] for value in values], dtype=np.int64)


def _at(values: Sequence[str | None], index: int) -> str | None:
    return values[index] if index >= 0 else None


def _look_up(column: pa.ChunkedArray, index: Mapping[str, int]) -> np.ndarray:
    return np.array([index.get(value, -1) for value in column.to_pylist()], dtype=np.int64)


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.cast(pa.float64()).fill_null(math.nan).to_numpy(), dtype=np.float64)


def _missing(indices: np.ndarray) -> np.ndarray:
    return np.where(indices < 0, math.nan, indices.astype(np.float64))


def _microseconds(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy(), dtype=np.int64)
