"""The simulated marketplace as a data set: what the benchmarks train and measure on where the truth must be known."""

from dataclasses import dataclass
from datetime import date, timedelta

from sgrec_core.settings import SimulatorSettings


@dataclass(frozen=True)
class Market:
    """A marketplace and how its days are used, in this order: supervised, feedback, evaluation, then an A/B test's."""

    settings: SimulatorSettings
    first_day: str
    supervised_days: int

    def days(self, start: int, count: int) -> list[str]:
        """``count`` days from the ``start``-th on (0: the first)."""
        first = date.fromisoformat(self.first_day)
        return [(first + timedelta(days=start + number)).isoformat() for number in range(count)]

    @property
    def logged_days(self) -> list[str]:
        """The days that the logging policy filled: supervised ones, one of feedback, one of evaluation."""
        return self.days(0, self.supervised_days + 2)

    def days_after(self, count: int) -> list[str]:
        """The ``count`` days after the logged ones."""
        return self.days(self.supervised_days + 2, count)


# Not the seed of the default marketplace, on which the defaults were chosen. No new items: one catalogue and one trie
# serve all days. The first day is a Friday, so that both kinds of days are trained on.
MARKET = Market(
    SimulatorSettings(seed=11, users=3000, items=300, new_items_per_day=0, requests_per_user=5.0, slate=8),
    first_day="2026-01-02",
    supervised_days=3,
)
SHORT = Market(
    SimulatorSettings(seed=11, users=150, items=60, new_items_per_day=0, requests_per_user=4.0, slate=6),
    first_day="2026-01-02",
    supervised_days=3,
)
"""To see that everything runs; its figures mean nothing."""
