"""The simulated A/B test: its parameters, fixed before the first comparison was made.

All users of the marketplace are served by every arm, on the days after those that any training read. Goals are the
gains of S-GRec's online test over its business-only generator (arXiv 2602.10606).
"""

from dataclasses import dataclass

from benchmarks.simulated import MARKET, SHORT, Market


@dataclass(frozen=True)
class AB:
    """Users and slate are the market's."""

    market: Market
    days: int
    """Days served, one after the other; histories go on from day to day."""
    max_history: int
    """Items of a history that an arm is told."""
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


PARAMETERS = AB(market=MARKET, days=3, max_history=20, seeds=(0, 1, 2, 3, 4), resamples=2000)
SHORT_PARAMETERS = AB(market=SHORT, days=1, max_history=20, seeds=(0,), resamples=200)

GOALS = {"GMV": 0.0119, "CTR": 0.0116, "dislike rate": -0.0202}
"""Relative differences of the a2po arm from the business-only arm: the paper's, online."""
