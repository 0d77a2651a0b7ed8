"""What candidates are compared on: decisions and requests of users that no fit reads."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core.errors import InputError
from sgrec_core.hashing import is_validation_user, share_not_among
from sgrec_core.lake import Lake
from sgrec_core.lake.queries import days_until, decisions, has_labels
from sgrec_core.logs.text import canonical_json
from sgrec_core.registry import ModelVersion, Registry
from sgrec_core.rewards.business_context import CLICKED
from sgrec_core.rewards.responses import ANSWERS
from sgrec_core.runtime.stages import SUPERVISED
from sgrec_core.settings import Settings

SPLITS = ("validation", "test")
REQUEST = ["user_id", "request_id"]
NIGHT_SHARE, MODEL_SHARE = "sgrec.validation_share", "sgrec.held_out_share"
"""Tags where users are held out, not labels. Of a night's supervised policy: the share of users that its night held
out. Of a generator: the share that it never read; a night's may be larger, once the setting has been raised."""


def shares_as_tags(
    lake: Lake,
    registry: Registry,
    day: str,
    settings: Settings,
    start: ModelVersion | None,
    trained_on: pa.ChunkedArray,
) -> dict[str, str]:
    """Tags of a generator that went on from ``start`` with decisions of the users ``trained_on``.

    Of the days before, both what their nights say and whom their decisions show: a night that stopped after it had
    split its day made no policy.
    """
    if has_labels(lake, day):
        return {}
    own = settings.states.validation_share
    days = days_until(day, settings.states.history_days)[:-1]
    nights = [version.tags.get(NIGHT_SHARE) for version in registry.versions(SUPERVISED) if version.day in days]
    before = [share for share in nights if share is not None]
    read = share_not_among(trained_on.unique().to_pylist())
    return {NIGHT_SHARE: str(own), MODEL_SHARE: str(min([own, read, smallest_share([start]), *map(float, before)]))}


def smallest_share(versions: Iterable[ModelVersion | None]) -> float:
    """The share of users that all of these generators never read; 1 where none says so."""
    return min((float(one.tags[MODEL_SHARE]) for one in versions if one and MODEL_SHARE in one.tags), default=1.0)


def held_out_decisions(lake: Lake, day: str, split: str, share: float = 1.0) -> pa.Table:
    """Columns user_id, history, target_item of the held-out decisions of ``day``.

    ``validation``: the day's user states of that split, of those users whom a night of this ``share`` holds out too.
    ``test``: the test labels of a leave-one-out set, each with all that its user did before, the validation label
    included.

    Raises:
        InputError: the split is unknown, or the day has no such decisions.
    """
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; valid are {' and '.join(SPLITS)}")
    states = decisions(lake, [day], "validation", ["user_id", "history", "target_item"])
    if split == "test":
        labels = lake.read("events", where={"day": day, "role": "test"})
        if not labels.num_rows:
            raise InputError(
                f"{day} has no test labels: only leave-one-out sets have; valid here is --split validation"
            )
        states = _test_decisions(lake, day, labels)
    if split == "validation" and share < 1.0:
        states = states.filter(pa.array(is_validation_user(states["user_id"].to_pylist(), share), pa.bool_()))
    if not states.num_rows:
        of = f" and of users that all models held out: {share:g} of them" if share < 1.0 else ""
        raise InputError(f"{day} has no held-out decisions of split {split}{of}")
    return states


def _test_decisions(lake: Lake, day: str, labels: pa.Table) -> pa.Table:
    """The test labels with the history before them: logged events up to ``day``, then the day's validation labels."""
    order = [("user_id", "ascending"), ("event_time", "ascending"), ("event_id", "ascending")]
    days = [partition["day"] for partition in lake.partitions("events") if partition["day"] <= day]
    columns = ["user_id", "event_time", "event_id", "item_id", "event_type"]
    logged = lake.read("events", where={"day": sorted(set(days)), "role": "logged"}, columns=columns)
    validation = lake.read("events", where={"day": day, "role": "validation"}, columns=columns)
    before: dict[str, list[str]] = {}
    for events in (logged, validation):
        events = events.filter(pc.is_in(events["event_type"], value_set=pa.array(CLICKED))).sort_by(order)
        for user, item in zip(events["user_id"].to_pylist(), events["item_id"].to_pylist(), strict=True):
            before.setdefault(user, []).append(item)
    labels = labels.sort_by(order)
    return pa.table(
        {
            "user_id": labels["user_id"],
            "history": pa.array(
                [before.get(user, []) for user in labels["user_id"].to_pylist()], pa.list_(pa.string())
            ),
            "target_item": labels["item_id"],
        }
    )


@dataclass(frozen=True)
class Requests:
    """R requests of held-out users, clicked or not, and the N impressions that they were answered with."""

    states: pa.Table
    """[R] user_id, as_of, history, profile, context."""
    row: np.ndarray
    """[N] which request."""
    item: list[str]
    """[N]"""
    position: np.ndarray
    """[N] int, from 0."""
    bid: np.ndarray
    """[N] float64."""
    price: np.ndarray
    """[N] float64, NaN where not known."""
    propensity: np.ndarray
    """[N] float64, NaN where not known."""
    answered: Mapping[str, np.ndarray]
    """By outcome [N] bool: whether its event came."""


def held_out_requests(lake: Lake, day: str, settings: Settings, share: float = 1.0) -> Requests | None:
    """The day's requests of validation users that have a history, of those whom a night of this ``share`` holds out
    too; None where the source logs no impressions with position and bid.

    Histories as `sgrec_core.states.decisions` makes them. Decisions are no substitute: a request without a click is
    where a list has earned nothing.
    """
    share = min(settings.states.validation_share, share)
    columns = [*REQUEST, "event_time", "event_id", "event_type", "item_id", "placement", "position", "price", "bid"]
    days = days_until(day, settings.states.history_days)
    events = lake.read("events", where={"day": days, "role": "logged"}, columns=["day", *columns, "propensity"])
    users = events["user_id"].unique()
    held_out = users.filter(pa.array(is_validation_user(users.to_pylist(), share), pa.bool_()))
    frame = events.filter(pc.is_in(events["user_id"], value_set=held_out)).to_pandas()
    frame = frame.sort_values(["event_time", "event_id"], kind="stable")
    today = frame[frame["day"] == pd.Timestamp(day).date()]
    shown = today[(today["event_type"] == "impression") & today["position"].notna() & today["bid"].notna()]
    if not len(shown):
        return None
    requests = today.drop_duplicates(REQUEST).sort_values(REQUEST, ignore_index=True)
    requests["history"] = _histories(requests, frame, settings.states.max_history)
    requests = requests[requests["history"].str.len() >= settings.states.min_history].reset_index(drop=True)
    shown = shown.merge(requests[REQUEST].assign(row=np.arange(len(requests))), on=REQUEST)
    if not len(shown):
        return None
    answer = pd.MultiIndex.from_frame(shown[[*REQUEST, "item_id"]])
    answered = {}
    for outcome, kinds in ANSWERS.items():
        came = today.loc[today["event_type"].isin(kinds), [*REQUEST, "item_id"]]
        answered[outcome] = np.asarray(answer.isin(pd.MultiIndex.from_frame(came)))
    profiles = lake.read("users", where={"day": day}, columns=["user_id", "profile"])
    at = pc.index_in(pa.array(requests["user_id"], pa.string()), profiles["user_id"].combine_chunks())
    return Requests(
        states=pa.table(
            {
                "user_id": pa.array(requests["user_id"], pa.string()),
                "as_of": pa.array(requests["event_time"], pa.timestamp("us", "UTC")),
                "history": pa.array(requests["history"], pa.list_(pa.string())),
                "profile": profiles["profile"].combine_chunks().take(at),
                "context": [
                    canonical_json({} if pd.isna(place) else {"placement": place}) for place in requests["placement"]
                ],
            }
        ),
        row=shown["row"].to_numpy(),
        item=shown["item_id"].tolist(),
        position=shown["position"].to_numpy(np.int64),
        answered=answered,
        **{name: shown[name].to_numpy(np.float64) for name in ("bid", "price", "propensity")},
    )


def _histories(requests: pd.DataFrame, events: pd.DataFrame, most: int) -> list[list[str]]:
    """The last items that each request's user chose strictly before it, oldest first."""
    chosen = events[events["event_type"].isin(CLICKED)].drop_duplicates([*REQUEST, "item_id"])
    chosen = chosen.sort_values(["event_time", "request_id", "item_id"], kind="stable")
    of_users = {user: (part["event_time"].to_numpy(), part["item_id"].to_numpy()) for user, part in
                chosen.groupby("user_id")}  # fmt: skip
    histories = []
    for user, moment in zip(requests["user_id"], requests["event_time"].to_numpy(), strict=True):
        times, items = of_users.get(user, (np.empty(0, "datetime64[us]"), np.empty(0, object)))
        before = int(np.searchsorted(times, moment))
        histories.append(items[max(before - most, 0) : before].tolist())
    return histories
