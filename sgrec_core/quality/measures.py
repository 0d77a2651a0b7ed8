"""What of a day is measured, each figure with its standard error: pure functions of Arrow tables.

Rows of one request come together, and so do those of one user: a count's error takes a request for one draw, that of a
share a user.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core.quality.history import Figure

TYPES = ("impression", "click", "conversion", "dislike")
NULLABLE = ("price", "bid", "position", "placement", "propensity")
AMOUNTS = ("price", "bid")
SAME_PRICE = 0.1
"""How far an event's price may lie off the catalogue's, as a part of it, to be the same item's."""
EVENT_COLUMNS = ("event_time", "user_id", "item_id", "event_type", "request_id", *NULLABLE)
SEEN_COLUMNS = ("request_id", "user_id", "item_id", "event_type")
"""Of events of the day before."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One figure of a day."""

    metric: str
    figure: Figure
    dimension: str = ""


def of_events(events: pa.Table, items: pa.Table, users: pa.Table) -> Iterator[Measured]:
    """Of ``events`` (`EVENT_COLUMNS`) beside the catalogue (item_id, price) and the profiles (user_id)."""
    rows = events.num_rows
    for kind, (count, error) in _counts_by_type(events).items():
        yield Measured(metric="events", dimension=kind, figure=Figure(value=count, error=error))
    if not rows:
        yield Measured(metric="users", figure=Figure(value=0, error=1))
        return
    by_user, shares = _shares(events, items)
    yield from shares
    number = by_user.num_rows
    yield Measured(metric="users", figure=Figure(value=number, error=number**0.5))
    with_profile = pc.sum(pc.is_in(by_user["user_id"], value_set=users["user_id"].combine_chunks())).as_py()
    yield Measured(metric="profiles", figure=_share(with_profile, number))
    busiest = pc.max(by_user["rows_sum"]).as_py()
    yield Measured(metric="top_user", figure=Figure(value=busiest / rows, error=busiest**0.5 / rows, size=rows))
    hours = pc.value_counts(pc.hour(events["event_time"])).field("counts")
    yield Measured(metric="top_hour", figure=_share(pc.max(hours).as_py(), rows, draws=number))
    for name in AMOUNTS:
        draws = min(number, pc.count_distinct(events["item_id"]).as_py())
        for dimension, figure in _quantiles(events[name], draws):
            yield Measured(metric=name, dimension=dimension, figure=figure)
        largest = pc.max(events[name]).as_py()
        if largest is not None:
            yield Measured(metric="largest", dimension=name, figure=Figure(value=largest, error=0))


def of_catalogue(items: pa.Table) -> Iterator[Measured]:
    """Of items (title, description). A catalogue is no sample: nothing of it is chance."""
    yield Measured(metric="items", figure=Figure(value=items.num_rows, error=0))
    if not items.num_rows:
        return
    has_title, has_description = (_has_text(items[name]) for name in ("title", "description"))
    with_text = pc.sum(pc.or_(has_title, has_description)).as_py()
    yield Measured(metric="items_with_text", figure=Figure(value=with_text / items.num_rows, error=0))
    titles = items["title"].filter(has_title)
    if len(titles):
        distinct = pc.count_distinct(titles).as_py() / len(titles)
        yield Measured(metric="distinct_titles", figure=Figure(value=distinct, error=0))


def of_files(files: pa.Table, error_of_events: float) -> Iterator[Measured]:
    """Of ``ingest_files`` (record, rows_seen, rows_rejected)."""
    for record in ("event", "item", "user"):
        of_record = files.filter(pc.equal(files["record"], record))
        rows = pc.sum(of_record["rows_seen"], min_count=0).as_py()
        error = error_of_events if record == "event" else 0
        yield Measured(metric="raw_rows", dimension=record, figure=Figure(value=rows, error=error))
    rows = pc.sum(files["rows_seen"], min_count=0).as_py()
    if rows:
        rejected = pc.sum(files["rows_rejected"], min_count=0).as_py()
        yield Measured(metric="rejected_share", figure=_share(min(rejected, rows), rows))


def of_judge(scores: pa.Table, version: str) -> Iterator[Measured]:
    """Of scored calls (state_id, aspects, scores) by one judge: mean and spread of each aspect's scores.

    The calls of one state are one draw: a judge that says the same of everything has no spread, one that says the
    opposite another mean.
    """
    if not scores.num_rows:
        return
    states = scores["state_id"].dictionary_encode().combine_chunks().indices.to_numpy()
    sizes = np.bincount(states)
    aspects = scores["aspects"][0].as_py()
    values = scores["scores"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, len(aspects))
    for aspect, of_aspect in zip(aspects, values.T, strict=True):
        mean, spread = float(of_aspect.mean()), float(of_aspect.std())
        by_state = np.bincount(states, weights=of_aspect - mean)
        error = float((by_state**2).sum()) ** 0.5 / len(of_aspect)
        dimension = f"{aspect} ({version[:8]})"
        yield Measured(metric="judge_mean", dimension=dimension, figure=Figure(value=mean, error=error))
        error = spread / (2 * len(sizes)) ** 0.5
        yield Measured(metric="judge_spread", dimension=dimension, figure=Figure(value=spread, error=error))


def item_overlap(events: pa.Table, before: pa.Table) -> Measured:
    """What the items' shares of the events have in common on two days: 1 minus their total variation distance."""
    today, earlier = (_item_shares(rows["item_id"]) for rows in (events, before))
    common = min(1.0, sum(min(share, earlier.get(item, 0.0)) for item, share in today.items()))
    draws = pc.count_distinct(events["request_id"]).as_py()
    return Measured(metric="item_overlap", figure=_share(common * draws, draws))


def seen_before(events: pa.Table, before: pa.Table) -> Measured:
    """The share of ``events`` that have request, user, item and type (`SEEN_COLUMNS`) of one of ``before``."""
    number = events.num_rows
    requests = pc.unique(before["request_id"])
    events = events.filter(pc.is_in(events["request_id"], value_set=requests))
    seen = 0
    if events.num_rows:  # the same ids need not be the same requests: a source may number each day's from one
        known = pc.unique(_joined(before))
        seen = pc.sum(pc.is_in(_joined(events), value_set=known)).as_py()
    return Measured(metric="seen_before", figure=_share(seen, number))


def count_of(metric: str, clusters: pa.ChunkedArray) -> Measured:
    """The number of rows, whose ``clusters`` say which come together."""
    counts = _numbers(pc.value_counts(clusters).field("counts"))
    return Measured(metric=metric, figure=Figure(value=float(counts.sum()), error=_error_of_count(counts)))


def _counts_by_type(events: pa.Table) -> dict[str, tuple[float, float]]:
    """Number of each type's events and its error."""
    grouped = events.group_by(["event_type", "request_id"]).aggregate([([], "count_all")])
    kinds = grouped["event_type"].to_numpy()
    counts = _numbers(grouped["count_all"])
    of_kinds = {kind: counts[kinds == kind] for kind in TYPES}
    return {kind: (float(found.sum()), _error_of_count(found)) for kind, found in of_kinds.items()}


def error_of_rows(events: pa.Table) -> float:
    """Error of the number of all events."""
    return _error_of_count(_numbers(pc.value_counts(events["request_id"]).field("counts")))


def _error_of_count(of_clusters: np.ndarray) -> float:
    """Of a sum over as many clusters as chance brings; of none as of one."""
    return max(1.0, float((of_clusters**2).sum()) ** 0.5)


def _shares(events: pa.Table, items: pa.Table) -> tuple[pa.Table, Iterator[Measured]]:
    """Sums by user (user_id, rows_sum, ...), and the shares that they tell."""
    marks: dict[str, pa.ChunkedArray] = {kind: pc.equal(events["event_type"], kind) for kind in TYPES}
    marks["rows"] = pc.is_valid(events["user_id"])
    shares = {
        ("click_rate", ""): ("click", "impression"),
        ("conversion_rate", ""): ("conversion", "click"),
        ("dislike_rate", ""): ("dislike", "impression"),
    }
    for name in NULLABLE:
        marks[f"{name} is null"] = pc.is_null(events[name])
        shares["null", name] = (f"{name} is null", "rows")
    for name in AMOUNTS:
        marks[f"{name} is there"] = pc.is_valid(events[name])
        marks[f"{name} is zero"] = pc.fill_null(pc.equal(events[name], 0.0), False)
        shares["zero", name] = (f"{name} is zero", f"{name} is there")
    listed = items["price"].take(pc.index_in(events["item_id"], items["item_id"].combine_chunks()))
    difference = pc.abs(pc.subtract(events["price"], listed))
    marks["two prices"] = pc.is_valid(difference)
    marks["same price"] = pc.fill_null(pc.less_equal(difference, pc.multiply(listed, SAME_PRICE)), False)
    shares["price_of_catalogue", ""] = ("same price", "two prices")

    numbers = {name: pc.cast(mark, pa.int32()) for name, mark in marks.items()}
    table = pa.table({"user_id": events["user_id"], **numbers})
    by_user = table.group_by("user_id").aggregate([(name, "sum") for name in marks])
    return by_user, (
        Measured(metric=metric, dimension=dimension, figure=figure)
        for (metric, dimension), (part, whole) in shares.items()
        if (figure := _share_by_user(by_user, part, whole)) is not None
    )


def _share_by_user(by_user: pa.Table, part: str, whole: str) -> Figure | None:
    """A ratio of sums over users, with the error of one; None where there is nothing to have a share of."""
    parts, wholes = (_numbers(by_user[f"{name}_sum"]) for name in (part, whole))
    size = float(wholes.sum())
    if not size:
        return None
    share = float(parts.sum()) / size
    error = float(((parts - share * wholes) ** 2).sum()) ** 0.5 / size
    return Figure(value=share, error=max(error, 1 / size), size=size)


def _share(part: float, whole: float, draws: float | None = None) -> Figure:
    """A share of independent draws; ``draws``, where there are fewer than the ``whole``."""
    share, draws = part / whole, draws or whole
    return Figure(value=share, error=max((share * (1 - share) / draws) ** 0.5, 1 / whole), size=whole)


def _quantiles(values: pa.ChunkedArray, draws: int) -> Iterator[tuple[str, Figure]]:
    """Median and 95% quantile; their error by the quantiles beside them, of ``draws`` independent values."""
    present = len(values) - values.null_count
    if not present:
        return
    for name, at in (("median", 0.5), ("95%", 0.95)):
        beside = (at * (1 - at) / draws) ** 0.5
        low, value, high = pc.quantile(values, q=[max(0.0, at - beside), at, min(1.0, at + beside)]).to_pylist()
        yield name, Figure(value=value, error=(high - low) / 2, size=present)


def _item_shares(item_ids: pa.ChunkedArray) -> Mapping[str, float]:
    counts = pc.value_counts(item_ids)
    shares = _numbers(counts.field("counts")) / max(len(item_ids), 1)
    return dict(zip(counts.field("values").to_pylist(), shares.tolist(), strict=True))


def _joined(events: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(*(events[name] for name in SEEN_COLUMNS), "\x1f")


def _has_text(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.fill_null(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0), False)


def _numbers(counts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return np.asarray(counts).astype(float)
