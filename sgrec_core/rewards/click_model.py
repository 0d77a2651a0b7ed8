"""The click model behind eCPM: gradient-boosted trees (LightGBM) over counts, prices, context and profile.

Then a sigmoid fitted on users that the trees did not see (Platt), which keeps the order within a group and makes the
probabilities honest. Every feature of an impression or a state at time t counts only events strictly before t; one
function (`BusinessContext.features`) computes them for training and for scoring.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sgrec_core.errors import InputError
from sgrec_core.hashing import hash_share
from sgrec_core.rewards.business_context import CLICKED, BusinessContext, Queries
from sgrec_core.rewards.business_encoding import ProfileEncoding

_TREES_SHARE = 0.8
"""Share of the users that the trees are fitted on; the others stop them early and calibrate them."""


class ClickModel:
    """Calibrated probabilities of clicks by one fit, and the JSON that it is kept as."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        import lightgbm

        self.config = dict(config)
        self._encodings = ProfileEncoding(config["vocabularies"], config["numeric_profile_fields"])
        self._booster = lightgbm.Booster(model_str=config["booster"])

    @classmethod
    def fit(
        cls,
        context: BusinessContext,
        *,
        seed: int,
        trees: int,
        learning_rate: float,
        threads: int,
        answers: Sequence[str] = CLICKED,
    ) -> "ClickModel":
        """Fit on the context's impressions: 80% of users for trees, 20% for early stopping and calibration.

        ``answers``: types of events whose probability it learns instead of the click's.

        Raises InputError when the impressions are too few, or all clicked or none.
        """
        import lightgbm

        queries, labels, users = context.impressions(answers)
        # By rank, so that a few users are enough for each share to have its part of them.
        shown = np.unique(users)
        names = np.array(list(context.user_index), dtype=object)[shown]
        order = np.argsort(hash_share(names, f"business-{seed}"), kind="stable")
        for_trees = np.isin(users, shown[order[: int(_TREES_SHARE * len(shown))]])
        parts = {"trees": for_trees, "calibration": ~for_trees}
        for part, mask in parts.items():
            if len(np.unique(labels[mask])) < 2:
                raise InputError(
                    f"events: the {part} share of {int(mask.sum())} impressions (of {len(labels)}) has "
                    f"{int(labels[mask].sum())} clicks; a click model needs impressions with and without clicks in "
                    "each share of each half of the users: give it more days (business.window_days) or users"
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
        positions = queries.position[np.isfinite(queries.position)]
        gains = booster.feature_importance("gain", iteration=booster.best_iteration)
        return cls(
            {
                "booster": booster.model_to_string(num_iteration=booster.best_iteration),
                "features": feature_names,
                "placements": list(context.placement_index),
                "vocabularies": encodings.vocabularies,
                "numeric_profile_fields": encodings.numeric,
                "calibration": {"method": "sigmoid", "slope": slope, "intercept": intercept},
                "first_position": float(positions.min()) if len(positions) else None,
                "gain": {name: float(gain) for name, gain in zip(feature_names, gains, strict=True) if gain > 0},
                "trees": int(booster.best_iteration or booster.current_iteration()),
            }
        )

    @property
    def first_position(self) -> float:
        """Of a slate; NaN where no impression had one."""
        first = self.config["first_position"]
        return math.nan if first is None else first

    def margins(self, queries: Queries, context: BusinessContext) -> np.ndarray:
        """Log-odds of a click by the trees alone: float64 [N]."""
        if not len(queries.item):
            return np.empty(0)
        features, names = context.features(queries, self._encodings)
        # The context's placements may be others than those at the fit.
        known = {placement: float(index) for index, placement in enumerate(self.config["placements"])}
        here = [known.get(placement, math.nan) for placement in context.placement_index] + [math.nan]
        features[:, names.index("placement")] = np.array(here)[queries.placement]
        return np.asarray(self._booster.predict(features, raw_score=True))

    def calibrated(self, margins: np.ndarray) -> np.ndarray:
        """Probabilities float64 [N] of `margins`."""
        calibration = self.config["calibration"]
        return sigmoid(calibration["slope"] * margins + calibration["intercept"])


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


def sigmoid(values: np.ndarray) -> np.ndarray:
    """Probabilities of log-odds, of any shape."""
    return 1 / (1 + np.exp(-values))
