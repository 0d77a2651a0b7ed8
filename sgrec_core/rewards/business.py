"""The business reward on logs: eCPM = 1000 x calibrated probability of a click x bid.

The click model (`click_model`) is cross-fitted by user: training users fall into two folds, a model is fitted on each,
and the decisions of a user are rewarded by the one that has not seen that user (sample splitting as in Chernozhukov et
al., arXiv 1608.00060). A model that has seen the click remembers it: its rewards would teach the policy what the logs
say already. The tables read are windows of days up to the night's; validation users are left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sgrec_core.errors import InputError
from sgrec_core.rewards.business_context import BusinessContext, microseconds
from sgrec_core.rewards.click_model import ClickModel, sigmoid


class EcpmModel:
    """Two calibrated click models and the eCPM that follows from them; of versions made before there were folds, one.

    A user outside of both folds (without events in the context: held out, or new) gets the mean of the two: neither
    has seen that user, the mean of two is no worse than one, and a third fit on everybody would be one more model to
    pay for, whose calibration nobody could be asked about.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = dict(config)
        self._models = [ClickModel(fold) for fold in config.get("folds", [config])]

    @classmethod
    def fit(
        cls, context: BusinessContext, *, seed: int, trees: int = 200, learning_rate: float = 0.05, threads: int = 1
    ) -> "EcpmModel":
        """Fit on the impressions of each half of the users for the rewards of the other.

        Raises InputError when the impressions of a half are too few, or all clicked or none. ``metrics`` then holds,
        over all impressions, each by the model that has not seen its user: log loss, AUC and the expected calibration
        error, before and after calibration. ``auc_in_fold`` is each by the model that was fitted on its user.
        """
        halves = context.halves(seed)
        settings: dict[str, Any] = {"seed": seed, "trees": trees, "learning_rate": learning_rate, "threads": threads}
        first, second = (ClickModel.fit(half, **settings) for half in halves)
        models = (second, first)
        return cls(
            {
                "kind": "ecpm",
                # Where a model stands is the half that it rewards, not the one that it was fitted on.
                "folds": [model.config for model in models],
                "fold_seed": seed,
                "metrics": _figures(models, halves),
            }
        )

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

    def reward(self, states: pa.Table, items: Sequence[Sequence[str]], context: BusinessContext) -> np.ndarray:
        """eCPM of each candidate: float64 [N, G] for ``states`` (N rows of user_states) and N groups of G item ids.

        1000 x P(click | the state, the item in first position) x the item's last bid before ``as_of``
        (`BusinessContext.last_bids`). Placement comes from the state's context; the price is the catalogue's.
        ``context`` is that of the fit, by whose users it tells who was seen; one over other days counts too, but
        takes users without events in it for unseen ones.
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
                else f"candidates: {len(items)} groups for {states.num_rows} states; each needs one group of {group}"
            )
        item = np.array([context.item_index[name] for name in flat], dtype=np.int64).reshape(len(items), group)
        bid = context.last_bids(item.reshape(-1), np.repeat(microseconds(states["as_of"]), group)).reshape(item.shape)
        seen = context.halves(self._config["fold_seed"]) if "folds" in self._config else (context,)
        fold = np.full(len(items), -1)
        for number, part in enumerate(seen):
            fold[[user in part.user_index for user in states["user_id"].to_pylist()]] = number
        probability = np.zeros(item.shape)
        for number, (model, part) in enumerate(zip(self._models, seen, strict=True)):
            rows = np.flatnonzero((fold == number) | (fold < 0))
            position = np.full(len(rows) * group, model.first_position)
            of_rows = np.repeat(np.arange(len(rows)), group)
            queries = part.queries(states.take(rows), of_rows, item[rows].reshape(-1), position, bid[rows].reshape(-1))
            probability[rows] += model.calibrated(model.margins(queries, part)).reshape(len(rows), group)
        probability[fold < 0] /= len(seen)
        return 1000.0 * probability * bid


def _figures(models: Sequence[ClickModel], halves: Sequence[BusinessContext]) -> dict[str, float]:
    """Of ``models``, each asked about the half that it rewards; ``auc_in_fold`` of each about the other."""
    asked = [half.impressions()[:2] for half in halves]
    labels = np.concatenate([answers for _, answers in asked])

    def margins(chosen: Sequence[ClickModel]) -> list[np.ndarray]:
        return [model.margins(queries, half) for model, half, (queries, _) in zip(chosen, halves, asked, strict=True)]

    def calibrated(chosen: Sequence[ClickModel], found: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([model.calibrated(part) for model, part in zip(chosen, found, strict=True)])

    raw, seen = margins(models), models[::-1]
    before, after = sigmoid(np.concatenate(raw)), calibrated(models, raw)
    return {
        "impressions": len(labels),
        "clicks": int(labels.sum()),
        "trees": float(np.mean([model.config["trees"] for model in models])),
        "auc": auc(labels, after),
        "auc_in_fold": auc(labels, calibrated(seen, margins(seen))),
        "log_loss_before": _log_loss(labels, before),
        "log_loss": _log_loss(labels, after),
        "ece_before": expected_calibration_error(labels, before),
        "ece": expected_calibration_error(labels, after),
    }


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


def _log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    clipped = np.clip(probabilities, 1e-12, 1 - 1e-12)
    return float(-(labels * np.log(clipped) + (1 - labels) * np.log(1 - clipped)).mean())
