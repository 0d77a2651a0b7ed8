"""What generators answer the market's requests, and the rankings that the gate compares, of any users on any day."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sgrec_core.evaluation.off_policy import effective_sample_size, importance_weights
from sgrec_core.evaluation.ranking import Ranking
from sgrec_core.evaluation.simulated_ab import Outcomes
from sgrec_core.evaluation.value import Logged, Values, estimate
from sgrec_core.generator.dataset import Catalogue


@dataclass(frozen=True)
class Recommended:
    """R requests of all evaluation days that have a history, sorted by day and user, and what generators answer.

    S is the size of a slate, U the number of users of the market, D that of evaluation days.
    """

    day: np.ndarray
    """[R] number of the evaluation day, from 0."""
    user: np.ndarray
    """[R] user numbers."""
    histories: np.ndarray
    """[R, n]"""
    targets: np.ndarray
    """[R] the item clicked first, -1 where none was: a request with a target is a decision."""
    logged: dict[str, np.ndarray]
    """As of `Appraisal.logged`, each [R, S]."""
    catalogue: Catalogue
    items: dict[str, np.ndarray]
    """By generator: [R, 50] ranked items."""
    expected: dict[str, dict[str, np.ndarray]]
    """By generator and outcome: what the reward model expects of its slates [R, S]."""
    truth: dict[str, Outcomes]
    """By generator: what all users of the market did in the A/B test [U]."""
    clip: float
    """Largest importance weight."""

    @property
    def days(self) -> int:
        return int(self.day.max()) + 1

    @property
    def users(self) -> int:
        return len(next(iter(self.truth.values())).clicks)

    @cached_property
    def first(self) -> np.ndarray:
        """[D * U + 1] first request of each day and user: of user u on day d that of number d * U + u."""
        return np.searchsorted(self.day * self.users + self.user, np.arange(self.days * self.users + 1))

    def requests(self, day: int, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Requests of users [S] on a day, and for each the place of its user in ``users``, who may stand there twice"""
        start, end = (self.first[day * self.users + users + more] for more in (0, 1))
        slot = np.repeat(np.arange(len(users)), end - start)
        before = np.cumsum(end - start) - (end - start)
        return start[slot] + np.arange(len(slot)) - before[slot], slot

    @cached_property
    def figures(self) -> dict[str, dict[str, np.ndarray]]:
        """By generator and name [D, U]: what a night with all users says of each, NaN of who is not there.

        Names: measures as ``ndcg@10``, values as ``ecpm doubly_robust``.
        """
        found: dict[str, dict[str, np.ndarray]] = {}
        for name in self.items:
            of = found.setdefault(name, {})
            for day in range(self.days):
                rows = np.flatnonzero(self.day == day)
                values = self._estimated(name, rows)
                told = {f"{outcome} {how}": (values.users, each) for (outcome, how), each in values.per_user.items()}
                decided = self._ranking(name, self.items[name][rows], rows, self.user[rows], None)
                for metric, cutoff in (("ndcg", 10), ("hit_rate", 10), ("hit_rate", 50)):
                    told[f"{metric}@{cutoff}"] = (np.unique(decided.users), decided.per_user(metric, cutoff))
                for which, (users, each) in told.items():
                    of.setdefault(which, np.full((self.days, self.users), np.nan))[day, users] = each
        return found

    def ranking(self, name: str, rows: np.ndarray) -> Ranking:
        """Of requests ``rows`` of one day."""
        everybody = np.zeros(len(rows), dtype=bool)
        return self.mixed(name, (name, name), rows, self.user[rows], everybody)

    def mixed(
        self, name: str, pair: tuple[str, str], rows: np.ndarray, users: np.ndarray, second: np.ndarray
    ) -> Ranking:
        """Of a policy called ``name`` that answers requests ``rows`` of one day as the first of a pair of generators
        does, where ``second`` [rows] as the other one; ``users`` [rows] are who asks."""
        items = np.where(second[:, None], self.items[pair[1]][rows], self.items[pair[0]][rows])
        unique, at = np.unique(users, return_index=True)
        day, of_user, chosen = self.day[rows[0]], self.user[rows[at]], second[at]
        ours, theirs = (self.figures[one] for one in pair)
        per_user = {
            tuple(which.split()): np.where(chosen, theirs[which][day, of_user], ours[which][day, of_user])
            for which in ours
            if " " in which and which in theirs
        }
        same = items[:, : self.logged["shown"].shape[1]] == self.logged["shown"][rows]
        weights = importance_weights(
            same.reshape(-1).astype(float), self.logged["propensity"][rows].reshape(-1), clip=self.clip
        )
        worth = Values(unique, per_user, effective_sample_size(weights), float(weights.mean()), same.shape[1])
        return self._ranking(name, items, rows, users, worth)

    def _ranking(
        self, name: str, items: np.ndarray, rows: np.ndarray, users: np.ndarray, worth: Values | None
    ) -> Ranking:
        decided = self.targets[rows] >= 0
        rows, catalogue = rows[decided], self.catalogue
        return Ranking(
            name, "1", items[decided], self.targets[rows], self.histories[rows], catalogue, users[decided], worth
        )

    def _estimated(self, name: str, rows: np.ndarray) -> Values:
        flat = {which: values[rows].reshape(-1) for which, values in self.logged.items()}
        slate = self.logged["shown"].shape[1]
        outcomes = list(self.expected[name])
        logged = Logged(
            users=np.repeat(self.user[rows], slate),
            propensities=flat["propensity"],
            rewards={outcome: flat[f"reward:{outcome}"] for outcome in outcomes},
            predicted={outcome: flat[f"predicted:{outcome}"] for outcome in outcomes},
            places=slate,
        )
        same = self.items[name][rows, :slate].reshape(-1) == flat["shown"]
        expected = {outcome: values[rows].reshape(-1) for outcome, values in self.expected[name].items()}
        return estimate(logged, same, expected, self.clip)
