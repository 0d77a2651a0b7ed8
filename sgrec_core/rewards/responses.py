"""What users would do with what a list shows them: the reward model of expected business value.

Three calibrated models of the kind of `click_model`, of a click, a purchase and a dislike, fitted on all training
users' impressions. The eCPM that candidates are rewarded with comes from other fits, each of half of these users; held
out users are in none of them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from sgrec_core.errors import InputError
from sgrec_core.rewards.business_context import CLICKED, BusinessContext
from sgrec_core.rewards.click_model import ClickModel

RESPONSES = "responses"
"""Where the registered business reward keeps `ResponseModel.to_config`."""
ANSWERS = {"ecpm": CLICKED, "gmv": ("conversion",), "dislikes": ("dislike",)}
"""What is earned or lost by an impression, and the events that it takes."""


def worth(bid: np.ndarray, price: np.ndarray) -> dict[str, np.ndarray]:
    """By outcome, what its event counts for [N]: eCPM and GMV are per thousand impressions, dislikes a share.

    What has no price adds nothing to the GMV.
    """
    return {"ecpm": 1000.0 * bid, "gmv": 1000.0 * np.nan_to_num(price), "dislikes": np.ones_like(bid)}


class ResponseModel:
    """The models by outcome; an outcome that is too rare in the logs for a model has none."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = dict(config)
        self._models = {outcome: ClickModel(fitted) for outcome, fitted in config.items()}

    @classmethod
    def fit(
        cls, context: BusinessContext, *, seed: int, trees: int = 200, learning_rate: float = 0.05, threads: int = 1
    ) -> "ResponseModel":
        """Fit on the impressions of ``context``."""
        fitted = {}
        for outcome, answers in ANSWERS.items():
            try:
                fitted[outcome] = ClickModel.fit(
                    context, seed=seed, trees=trees, learning_rate=learning_rate, threads=threads, answers=answers
                ).config
            except InputError:  # too rare: nothing is said about it
                continue
        return cls(fitted)

    def to_config(self) -> dict[str, Any]:
        """JSON of everything that the constructor needs."""
        return self._config

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Those that have a model."""
        return tuple(self._models)

    def expected(
        self,
        states: pa.Table,
        shown: tuple[np.ndarray, np.ndarray, np.ndarray],
        context: BusinessContext,
        bid: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """By outcome, what is expected of each of N impressions.

        Args:
            states: situations, with the columns user_id, as_of, profile and context.
            shown: [N] rows of ``states``, [N] indices of items in ``context``, [N] positions from 0.
            context: may hold events of these users: features count what lies strictly before ``as_of``.
            bid: [N], by default the items' last ones before ``as_of``.
        """
        row, item, position = shown
        queries = context.queries(states, row, item, position.astype(np.float64), np.full(len(row), np.nan))
        queries.bid = context.last_bids(item, queries.time) if bid is None else bid
        counts_for = worth(queries.bid, queries.price)
        return {
            outcome: model.calibrated(model.margins(queries, context)) * counts_for[outcome]
            for outcome, model in self._models.items()
        }
