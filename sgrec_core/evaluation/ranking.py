"""What a model recommends for held-out decisions, and its rows of ``evaluations``."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sgrec_core.evaluation import metrics
from sgrec_core.evaluation.score import OfUsers
from sgrec_core.evaluation.significance import bootstrap
from sgrec_core.evaluation.value import DOUBLY_ROBUST, Values
from sgrec_core.generator.dataset import Catalogue

MEASURES = {"hit_rate": metrics.hit_rate, "ndcg": metrics.ndcg}
CUTOFF = 10
"""Of buckets, coverage, Gini index and the gate."""


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """Of users, for intervals."""

    seed: int
    resamples: int


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
    worth: Values | None = None
    """What its lists are expected to earn with held-out users' requests, where the source logs impressions."""
    optimised: bool = False
    """Whether it was optimised for a reward: a model of that flatters it."""

    def values(self, metric: str, cutoff: int = CUTOFF) -> np.ndarray:
        """[N] the metric of each decision."""
        return MEASURES[metric](self._ranks, cutoff)

    @cached_property
    def _ranks(self) -> np.ndarray:
        return metrics.target_ranks(self.items, self.targets)

    def per_user(self, metric: str, cutoff: int = CUTOFF) -> np.ndarray:
        """[U] mean of the metric over each user's decisions, users in ascending order."""
        return metrics.per_user(self.values(metric, cutoff), self.users)

    def of_users(self) -> OfUsers:
        """What the score is made of: of everybody who decided or asked."""
        deciding, worth = np.unique(self.users), self.worth
        users, told = deciding, {"ndcg": (deciding, self.per_user("ndcg"))}
        if worth is not None:
            users = np.union1d(deciding, worth.users)
            if worth.estimator == DOUBLY_ROBUST:
                told |= {
                    outcome: (worth.users, values)
                    for (outcome, estimator), values in worth.per_user.items()
                    if estimator == DOUBLY_ROBUST
                }
        figures = {name: np.full(len(users), np.nan) for name in told}
        for name, (of, values) in told.items():
            figures[name][np.searchsorted(users, of)] = values
        return OfUsers(users, figures)

    def coverage(self) -> float:
        """Share of the catalogue that appears in someone's first `CUTOFF` items."""
        return metrics.coverage(self.items, len(self.catalogue), CUTOFF)

    def buckets(self) -> np.ndarray:
        """[N] index into `metrics.NOVELTY_BUCKETS` of each target, -1 for one that the model cannot recommend."""
        found = np.full(len(self.targets), -1)
        known = self.targets >= 0
        found[known] = metrics.novelty_buckets(self.histories[known], self.targets[known], self.catalogue.codes)
        return found


def evaluation_rows(ranking: Ranking, role: str, split: str, resampling: Resampling) -> list[dict[str, Any]]:
    """Rows of ``evaluations`` of one model, without the day."""
    users = len(np.unique(ranking.users))
    common = {"model": ranking.model, "model_version": ranking.version, "role": role, "split": split, "users": users}
    rows: list[dict[str, Any]] = []

    def add(metric: str, cutoff: int, values: np.ndarray, bucket: str = "all") -> None:
        found = bootstrap(values, seed=resampling.seed, resamples=resampling.resamples)
        rows.append({**common, "metric": metric, "cutoff": cutoff, "bucket": bucket, **vars(found)})

    for metric in MEASURES:
        for cutoff in metrics.CUTOFFS:
            add(metric, cutoff, ranking.per_user(metric, cutoff))
    id_ranks = metrics.identity_ranks(ranking.items, ranking.targets, ranking.catalogue.identities)
    for metric, measure in MEASURES.items():
        for cutoff in metrics.CUTOFFS:
            add(f"id_{metric}", cutoff, metrics.per_user(measure(id_ranks, cutoff), ranking.users))
    # Of all lists together, no mean over users: without an interval.
    gini = metrics.gini(ranking.items, len(ranking.catalogue), CUTOFF)
    for metric, value in (("coverage", ranking.coverage()), ("gini", gini)):
        figures = {"value": value, "lower": None, "upper": None}
        rows.append({**common, "metric": metric, "cutoff": CUTOFF, "bucket": "all", **figures})

    buckets = ranking.buckets()
    for number, bucket in enumerate(metrics.NOVELTY_BUCKETS):
        inside = buckets == number
        if inside.any():
            common["users"] = len(np.unique(ranking.users[inside]))
            for metric in MEASURES:
                add(metric, CUTOFF, metrics.per_user(ranking.values(metric)[inside], ranking.users[inside]), bucket)
    if ranking.worth is not None:
        common["users"] = len(ranking.worth.users)
        for (outcome, estimator), values in ranking.worth.per_user.items():
            add(f"{outcome}_{estimator}", ranking.worth.places, values)
    return rows


def figures(rows: list[dict[str, Any]]) -> Mapping[str, float]:
    """``hr@10``, ``ndcg@10`` and so on of evaluation rows over all decisions."""
    short = {"hit_rate": "hr", "ndcg": "ndcg"}
    return {
        f"{short[row['metric']]}@{row['cutoff']}": row["value"]
        for row in rows
        if row["bucket"] == "all" and row["metric"] in short
    }
