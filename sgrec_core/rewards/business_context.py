"""What a click model reads of the logs: counts of events strictly before a moment, prices, bids, placements."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core.errors import InputError
from sgrec_core.hashing import hash_share
from sgrec_core.rewards.business_encoding import ProfileEncoding, profile_fields

_MICROSECONDS = 3_600_000_000
_PRIOR_STRENGTH = 20.0
"""Impressions that the global click rate weighs in a smoothed rate."""
CLICKED = ("click", "conversion")
"""Types of events that say that an item was clicked: some logs do not repeat the click of what was bought."""


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
        self._tables = events, items, users
        self._halves: dict[int, tuple[BusinessContext, BusinessContext]] = {}
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
        self._time = microseconds(events["event_time"])
        self._type = np.array(events["event_type"].to_pylist(), dtype=object)
        self._request = events["request_id"].to_pylist()
        self._placement = _look_up(events["placement"], self.placement_index)
        self._position = _floats(events["position"])
        self._price = _floats(events["price"])
        self._bid = _floats(events["bid"])

        impressions = self._type == "impression"
        clicks = np.isin(self._type, CLICKED)
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

    def halves(self, seed: int) -> tuple["BusinessContext", "BusinessContext"]:
        """The users in two halves by seeded hash, the same every night, and of each half its own events alone.

        Nothing of a user is counted in the other half, not even in what an item was clicked: a model of that half
        cannot have learnt it. Both halves are alike in size, so that counts mean the same in either.
        """
        if seed not in self._halves:

            def of(second: bool) -> BusinessContext:
                return BusinessContext(
                    *self._tables,
                    keep_user=lambda users: (hash_share(users, f"business-halves-{seed}") >= 0.5) == second,
                )

            self._halves[seed] = (of(False), of(True))
        return self._halves[seed]

    def impressions(self, answers: Sequence[str] = CLICKED) -> tuple[Queries, np.ndarray, np.ndarray]:
        """Logged impressions of known items as queries, their labels and their users.

        Label 1: one of ``answers`` (types of events) to the item in the same request by the same user. Returns
        (queries, float64 [N], int64 user index [N]).
        """
        answered = {
            (user, request, item)
            for user, request, item, kind in zip(self._user, self._request, self._item, self._type, strict=True)
            if kind in answers
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

    def queries(
        self, states: pa.Table, row: np.ndarray, item: np.ndarray, position: np.ndarray, bid: np.ndarray
    ) -> Queries:
        """What is asked of items [N] at ``position`` [N] with ``bid`` [N] in the situations ``row`` [N] of ``states``.

        States have the columns user_id, as_of, profile and context, whose placement counts; prices are the catalogue's.
        """
        users = np.array([self.user_index.get(user, -1) for user in states["user_id"].to_pylist()], dtype=np.int64)
        fields = [profile_fields(text) for text in states["context"].to_pylist()]
        placements = [self.placement_index.get(str(known.get("placement")), -1) for known in fields]
        profiles = states["profile"].to_pylist()
        return Queries(
            user=users[row],
            item=item,
            time=microseconds(states["as_of"])[row],
            placement=np.array(placements, dtype=np.int64)[row],
            position=position,
            price=self.item_price[item],
            bid=bid,
            profile=[profiles[index] for index in row],
        )

    def fit_encoding(self) -> ProfileEncoding:
        """The encoding of the categories and brands of these items, and of the profiles of these users."""
        profiles = [self.profiles.get(user) for user in self.user_index]
        return ProfileEncoding.fit(profiles, self.item_category, self.item_brand)

    def features(self, queries: Queries, encodings: ProfileEncoding) -> tuple[np.ndarray, list[str]]:
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


def _leaf(path: str | None) -> str | None:
    """The most special part of a category path."""
    return path.rsplit(",", 1)[-1].strip() if path else None


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


def microseconds(column: pa.ChunkedArray) -> np.ndarray:
    """Times as int64 since the epoch [N]."""
    return np.asarray(column.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy(), dtype=np.int64)
