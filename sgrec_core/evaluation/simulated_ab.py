"""An A/B test on the simulated marketplace: users respond to what an arm shows them by their true preferences.

Every arm serves the same users at the same requests, over one or more days. Responses are drawn with common random
numbers: the same user, request and position meets the same draw in every arm, so that two arms that show the same
slate get the same response, and differences are between slates, not luck. What an arm's users click changes their state
for the rest of the day (the simulator redraws it overnight, as for the logs) and their history for good.

After the online test of S-GRec (arXiv 2602.10606): GMV, CTR, dislike rate of two generators.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sgrec_core.evaluation.significance import Interval, relative_difference

if TYPE_CHECKING:
    from sgrec_core.simulator.requests import Requests

Arm = Callable[[np.ndarray], np.ndarray]
"""Histories [S, n] of item indices, oldest first, padded with -1 on the right, to ranked items [S, at least slate]."""


@dataclass(frozen=True)
class Outcomes:
    """What the users of one arm did; sums over all requests, each of shape [U]."""

    impressions: np.ndarray
    clicks: np.ndarray
    conversions: np.ndarray
    gmv: np.ndarray
    """Prices of what was bought."""
    dislikes: np.ndarray
    revenue: np.ndarray
    """Bids of what was clicked."""

    def __add__(self, other: "Outcomes") -> "Outcomes":
        """The same users' sums over both, as over several runs."""
        return Outcomes(**{name: values + vars(other)[name] for name, values in vars(self).items()})


METRICS: dict[str, Callable[[Outcomes], tuple[np.ndarray, np.ndarray]]] = {
    "GMV": lambda arm: (arm.gmv, np.ones_like(arm.gmv)),
    "CTR": lambda arm: (arm.clicks, arm.impressions),
    "dislike rate": lambda arm: (arm.dislikes, arm.impressions),
    "conversion rate": lambda arm: (arm.conversions, arm.clicks),
    "revenue": lambda arm: (arm.revenue, np.ones_like(arm.revenue)),
}
"""Each a ratio of sums over users: what is added up, and per how much. GMV and revenue are per user."""


def serve(arm: Arm, days: Iterable[Iterable["Requests"]], histories: np.ndarray) -> Outcomes:
    """Let ``arm`` fill all slates of ``days``, each made by `sgrec_core.simulator.requests.day_requests`.

    Histories [U, n] are those of all users of the market, padded with -1 on the right, as of the first day; they are
    not changed. Arms are comparable when their days are made with the same arguments.

    Raises:
        ValueError: the arm answers with too few items, with none (-1), or with one item twice in a slate.
    """
    histories = histories.copy()
    sums = {name: np.zeros(len(histories)) for name in Outcomes.__dataclass_fields__}
    for requests in (requests for day in days for requests in day):
        shown = np.asarray(arm(histories[requests.user]))[:, : requests.slate]
        _check(shown, len(requests.user), requests.slate, len(requests.items.price))
        responses = requests.show(shown)
        asked = {
            "impressions": np.ones(shown.shape),
            "clicks": responses.clicked,
            "conversions": responses.converted,
            "gmv": responses.converted * requests.items.price[shown],
            "dislikes": responses.disliked,
            "revenue": responses.clicked * requests.bids[shown],
        }
        for name, values in asked.items():
            # Nobody asks twice in a turn.
            sums[name][requests.user] += values.sum(axis=1)
        for position in range(requests.slate):
            clicking = responses.clicked[:, position]
            append(histories, requests.user[clicking], shown[clicking, position])
    return Outcomes(**sums)


def append(histories: np.ndarray, users: np.ndarray, items: np.ndarray) -> None:
    """Put items [B] at the end of the histories of different users [B], in place; a full history loses its oldest."""
    full = histories[users, -1] >= 0
    histories[users[full], :-1] = histories[users[full], 1:]
    histories[users[full], -1] = -1
    histories[users, (histories[users] >= 0).sum(axis=1)] = items


def differences(
    challenger: Outcomes, baseline: Outcomes, *, seed: int, resamples: int = 2000, confidence: float = 0.95
) -> dict[str, Interval]:
    """By metric: relative difference of the challenger from the baseline, +.01 for one per cent more.

    Intervals by paired bootstrap over users: they tell chance among users, not that of training.
    """
    return {
        name: relative_difference(
            metric(challenger), metric(baseline), seed=seed, resamples=resamples, confidence=confidence
        )
        for name, metric in METRICS.items()
    }


def pooled(runs: Sequence[Outcomes]) -> Outcomes:
    """Outcomes of the same users summed over at least one run."""
    first, *others = runs
    return sum(others, start=first)


def _check(shown: np.ndarray, requests: int, slate: int, items: int) -> None:
    if shown.shape != (requests, slate):
        raise ValueError(f"the arm answered {requests} requests for {slate} items with {shown.shape}")
    ordered = np.sort(shown, axis=1)
    if shown.min(initial=0) < 0 or shown.max(initial=0) >= items or (ordered[:, 1:] == ordered[:, :-1]).any():
        raise ValueError(f"a slate holds {slate} different items, each from 0 to {items - 1}; the arm's do not")
