"""Offline evaluation of generators on held-out decisions, and the comparison that decides about promotion."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core.errors import InputError
from sgrec_core.evaluation import metrics
from sgrec_core.evaluation.significance import Interval, bootstrap, paired_bootstrap
from sgrec_core.generator.dataset import Catalogue, history_matrix
from sgrec_core.generator.decoding import rank_items
from sgrec_core.generator.device import use_threads
from sgrec_core.lake import Lake
from sgrec_core.lake.queries import days_until, decisions
from sgrec_core.night.generators import generator_of_day
from sgrec_core.registry import ModelVersion, Registry
from sgrec_core.runtime.stages import GENERATOR
from sgrec_core.settings import EvaluationSettings, Settings, StateSettings

MEASURES = {"hit_rate": metrics.hit_rate, "ndcg": metrics.ndcg}
SPLITS = ("validation", "test")
CUTOFF = 10
"""Of buckets, coverage, Gini index and the gate."""


@dataclass(frozen=True)
class Ranking:
    """What one model recommends for N held-out decisions, in the indices of its own catalogue."""

    model: str
    version: str
    items: np.ndarray
    """[N, K]"""
    targets: np.ndarray
    """[N], -2 for an item that the model cannot recommend: always a miss."""
    histories: np.ndarray
    """[N, n], -1 after the end."""
    catalogue: Catalogue
    users: np.ndarray
    """[N] user ids."""

    def per_user(self, metric: str, cutoff: int = CUTOFF) -> np.ndarray:
        """[U] mean of the metric over each user's decisions, users in ascending order."""
        ranks = metrics.target_ranks(self.items, self.targets)
        return metrics.per_user(MEASURES[metric](ranks, cutoff), self.users)


def held_out_decisions(lake: Lake, day: str, split: str) -> pa.Table:
    """Columns user_id, history, target_item of the held-out decisions of ``day``.

    ``validation``: the day's user states of that split. ``test``: the test labels of a leave-one-out set, each with all
    that its user did before, the validation label included.

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
    if not states.num_rows:
        raise InputError(f"{day} has no held-out decisions of split {split}")
    return states


def _test_decisions(lake: Lake, day: str, labels: pa.Table) -> pa.Table:
    """The test labels with the history before them: logged events up to ``day``, then the day's validation labels."""
    order = [("user_id", "ascending"), ("event_time", "ascending"), ("event_id", "ascending")]
    days = [partition["day"] for partition in lake.partitions("events") if partition["day"] <= day]
    columns = ["user_id", "event_time", "event_id", "item_id", "event_type"]
    chosen = pa.array(["click", "conversion"])
    logged = lake.read("events", where={"day": sorted(set(days)), "role": "logged"}, columns=columns)
    validation = lake.read("events", where={"day": day, "role": "validation"}, columns=columns)
    before: dict[str, list[str]] = {}
    for events in (logged, validation):
        events = events.filter(pc.is_in(events["event_type"], value_set=chosen)).sort_by(order)
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


def rank_with_generator(
    lake: Lake,
    registry: Registry,
    version: ModelVersion,
    day: str,
    states: pa.Table,
    settings: EvaluationSettings,
    progress: Callable[[int], None] | None = None,
) -> Ranking:
    """Beam search over the day's whole catalogue; items of the history stay in the ranking."""
    model, catalogue = generator_of_day(lake, registry, version, day)
    histories = history_matrix(states["history"], catalogue, model.config.max_items)
    beams = rank_items(
        model,
        catalogue.trie,
        histories,
        width=settings.beam,
        count=max(metrics.CUTOFFS),
        batch_size=settings.batch_size,
        progress=progress,
    )
    return _ranking(version.name, version.version, beams.items.numpy(), histories, catalogue, states)


def rank_by_popularity(
    lake: Lake, day: str, catalogue: Catalogue, states: pa.Table, settings: StateSettings
) -> Ranking:
    """The items that training decisions of the last days chose most often, alike for all users."""
    chosen = decisions(lake, days_until(day, settings.history_days), "train", ["target_item"])["target_item"]
    index = catalogue.index(chosen)
    counts = np.bincount(index[index >= 0], minlength=len(catalogue))
    best = np.argsort(-counts, kind="stable")[: max(metrics.CUTOFFS)]
    items = np.tile(best, (states.num_rows, 1))
    histories = history_matrix(states["history"], catalogue, settings.max_history)
    return _ranking("popularity", day, items, histories, catalogue, states)


def _ranking(
    model: str, version: str, items: np.ndarray, histories: np.ndarray, catalogue: Catalogue, states: pa.Table
) -> Ranking:
    targets = catalogue.index(states["target_item"])
    # -1 pads short rankings, so it must not stand for a target too.
    targets = np.where(targets < 0, -2, targets)
    return Ranking(model, version, items, targets, histories, catalogue, states["user_id"].to_numpy())


def evaluation_rows(ranking: Ranking, role: str, split: str, settings: EvaluationSettings) -> list[dict[str, Any]]:
    """Rows of ``evaluations`` of one model, without the day."""
    users = len(np.unique(ranking.users))
    common = {"model": ranking.model, "model_version": ranking.version, "role": role, "split": split, "users": users}
    rows: list[dict[str, Any]] = []

    def add(metric: str, cutoff: int, values: np.ndarray, bucket: str = "all") -> None:
        found = bootstrap(values, seed=settings.seed, resamples=settings.bootstrap_samples)
        rows.append({**common, "metric": metric, "cutoff": cutoff, "bucket": bucket, **vars(found)})

    for metric in MEASURES:
        for cutoff in metrics.CUTOFFS:
            add(metric, cutoff, ranking.per_user(metric, cutoff))
    id_ranks = metrics.identity_ranks(ranking.items, ranking.targets, ranking.catalogue.identities)
    for metric, measure in MEASURES.items():
        for cutoff in metrics.CUTOFFS:
            add(f"id_{metric}", cutoff, metrics.per_user(measure(id_ranks, cutoff), ranking.users))
    # Of all lists together, no mean over users: without an interval.
    for metric, of_lists in (("coverage", metrics.coverage), ("gini", metrics.gini)):
        value = of_lists(ranking.items, len(ranking.catalogue), CUTOFF)
        figures = {"value": value, "lower": None, "upper": None}
        rows.append({**common, "metric": metric, "cutoff": CUTOFF, "bucket": "all", **figures})

    known = np.nonzero(ranking.targets >= 0)[0]
    buckets = metrics.novelty_buckets(ranking.histories[known], ranking.targets[known], ranking.catalogue.codes)
    ranks = metrics.target_ranks(ranking.items[known], ranking.targets[known])
    for number, bucket in enumerate(metrics.NOVELTY_BUCKETS):
        inside = buckets == number
        if inside.any():
            common["users"] = len(np.unique(ranking.users[known][inside]))
            for metric, measure in MEASURES.items():
                add(
                    metric,
                    CUTOFF,
                    metrics.per_user(measure(ranks[inside], CUTOFF), ranking.users[known][inside]),
                    bucket,
                )
    return rows


@dataclass(frozen=True)
class Verdict:
    """Whether the challenger beats the baseline, and why, in words."""

    passed: bool
    reason: str
    difference: Interval
    """Of NDCG@10, challenger minus baseline, over users."""


def compare(challenger: Ranking, baseline: Ranking, settings: EvaluationSettings) -> Verdict:
    """The gate: NDCG@10 above the baseline's, and its 95% interval of the difference not far below zero.

    The interval, by a paired bootstrap over users, must not reach below -``tolerance`` times the baseline's value.
    """
    ours, theirs = challenger.per_user("ndcg"), baseline.per_user("ndcg")
    difference = paired_bootstrap(ours, theirs, seed=settings.seed, resamples=settings.bootstrap_samples)
    name = baseline.model if baseline.model == "popularity" else f"{baseline.model} version {baseline.version}"
    figures = (
        f"NDCG@10 {ours.mean():.4f} against {theirs.mean():.4f} of {name}, difference {difference.value:+.4f}"
        f" [{difference.lower:+.4f}, {difference.upper:+.4f}] over {len(ours)} users"
    )
    floor = -settings.tolerance * float(theirs.mean())
    if difference.value <= 0:
        return Verdict(False, f"not better: {figures}", difference)
    if difference.lower < floor:
        return Verdict(
            False, f"better, but not surely: {figures}; the interval may not reach below {floor:+.4f}", difference
        )
    return Verdict(True, f"better: {figures}", difference)


def evaluate_version(
    settings: Settings,
    version: str,
    split: str,
    *,
    day: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[ModelVersion, list[dict[str, Any]]]:
    """Evaluate a version (number or alias) of the generator on held-out decisions; nothing is published.

    Args:
        split: ``validation`` or ``test``.
        day: whose held-out decisions; by default those of the night that made the version.

    Returns:
        The version and rows as in table ``evaluations``.

    Raises:
        InputError: there are no such decisions.
        SgrecError: there is no such version.
    """
    use_threads(settings.threads)
    lake, registry = Lake(settings.lake_root), Registry(settings)
    chosen = registry.get(GENERATOR, version)
    day = day or chosen.day
    states = held_out_decisions(lake, day, split)
    ranking = rank_with_generator(lake, registry, chosen, day, states, settings.evaluation, progress)
    champion = registry.champion()
    role = "champion" if champion and champion.version == chosen.version else "challenger"
    return chosen, evaluation_rows(ranking, role, split, settings.evaluation)


def figures(rows: list[dict[str, Any]]) -> Mapping[str, float]:
    """``hr@10``, ``ndcg@10`` and so on of evaluation rows over all decisions."""
    short = {"hit_rate": "hr", "ndcg": "ndcg"}
    return {
        f"{short[row['metric']]}@{row['cutoff']}": row["value"]
        for row in rows
        if row["bucket"] == "all" and row["metric"] in short
    }
