"""The business reward on logs: eCPM = 1000 x calibrated probability of a click x bid.

A gradient-boosted click model (LightGBM) over counts, prices, context and profile; then a sigmoid fitted on users
that the trees did not see (Platt), which keeps the order within a group and makes the probabilities honest. Every
feature of an impression or a state at time t counts only events strictly before t; one function computes them for
training and for scoring. The tables read are windows of days up to the night's; validation users are left out.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sgrec_core.errors import InputError
from sgrec_core.hashing import hash_share
from sgrec_core.rewards.business_context import BusinessContext, Queries, microseconds
from sgrec_core.rewards.business_encoding import ProfileEncoding, profile_fields


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
        encodings = context.fit_encoding()
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
                else f"candidates: {len(items)} groups for {states.num_rows} states; each needs one group of {group}"
            )
        item = np.array([context.item_index[name] for name in flat], dtype=np.int64)
        users = states["user_id"].to_pylist()
        contexts = [profile_fields(text) for text in states["context"].to_pylist()]
        placement = np.array([context.placement_index.get(str(known.get("placement")), -1) for known in contexts])
        time = np.repeat(microseconds(states["as_of"]), group)
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
