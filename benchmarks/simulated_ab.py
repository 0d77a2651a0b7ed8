"""The simulated A/B test: its parameters, fixed before the first comparison was made.

All users of the marketplace are served by every arm, on the days after those that any training read. Goals are the
gains of S-GRec's online test over its business-only generator (arXiv 2602.10606).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.simulated import MARKET, SHORT, Market, read_log
from sgrec_core import simulator
from sgrec_core.evaluation import simulated_ab
from sgrec_core.evaluation.significance import Interval
from sgrec_core.evaluation.simulated_ab import Arm, Outcomes


@dataclass(frozen=True)
class AB:
    """Users and slate are the market's."""

    market: Market
    days: int
    """Days served, one after the other; histories go on from day to day."""
    seeds: tuple[int, ...]
    """One run each: models trained with the seed, and users drawn with it."""
    resamples: int
    """Of the users, for the 95% intervals."""

    @property
    def users(self) -> int:
        return self.market.settings.users

    @property
    def slate(self) -> int:
        return self.market.settings.slate


PARAMETERS = AB(market=MARKET, days=3, seeds=(0, 1, 2, 3, 4), resamples=2000)
SHORT_PARAMETERS = AB(market=SHORT, days=1, seeds=(0,), resamples=200)

GOALS = {"GMV": 0.0119, "CTR": 0.0116, "dislike rate": -0.0202}
"""Relative differences of the a2po arm from the business-only arm: the paper's, online."""


def compare(
    models: Mapping[str, Arm], seed: int, *, short: bool = False, test: AB | None = None
) -> dict[str, Outcomes]:
    """Serve all users with each arm, see `sgrec_core.evaluation.simulated_ab`; ``seed`` draws requests and responses.

    Arms take histories [S, `simulated.MAX_HISTORY`] and give at least ``slate`` ranked items; the users' histories
    start with what the logs hold of them. ``test``: another than that of `PARAMETERS` or `SHORT_PARAMETERS`.
    """
    parameters = test or (SHORT_PARAMETERS if short else PARAMETERS)
    market = parameters.market
    histories = read_log(market).last_histories()
    served = {}
    for name, arm in models.items():
        # Anew for each arm: requests are answered as they are made.
        days = (
            simulator.day_requests(market.settings, day, market.first_day, trial=seed)
            for day in market.days_after(parameters.days)
        )
        served[name] = simulated_ab.serve(arm, days, histories)
    return served


def differences(
    runs: Sequence[Mapping[str, Outcomes]], baseline: str, *, short: bool = False
) -> dict[str, dict[str, Interval]]:
    """By arm and metric, the relative difference from the arm ``baseline``; outcomes are summed over ``runs``."""
    parameters = SHORT_PARAMETERS if short else PARAMETERS
    pooled = {name: simulated_ab.pooled([run[name] for run in runs]) for name in runs[0]}
    return {
        name: simulated_ab.differences(outcomes, pooled[baseline], seed=0, resamples=parameters.resamples)
        for name, outcomes in pooled.items()
        if name != baseline
    }
