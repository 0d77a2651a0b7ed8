"""Months of nights in which the truth is known, because a coin says which of two lists is the optimised policy's.

Two trained generators rank the same decisions. For every user a coin says which of the two lists counts as the
optimised policy's; the supervised one has the other. A fair coin makes both policies the same in distribution, with the
noise of real lists; a loaded one gives the optimised policy the better list more often, so that it truly is better by a
share of NDCG@10 that is known. The gate's own functions then look at such nights.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist

import numpy as np

from benchmarks.gate_requests import Recommended
from sgrec_core.evaluation.gate import Comparison, Evidence, Margins, compare, decide
from sgrec_core.evaluation.ranking import Ranking, Resampling
from sgrec_core.evaluation.roles import CHAMPION, OPTIMISED, POPULARITY, SUPERVISED
from sgrec_core.evaluation.score import SIGNS, OfUsers, Weights, score_differences
from sgrec_core.evaluation.sequential import Differences
from sgrec_core.evaluation.significance import Interval
from sgrec_core.evaluation.value import DOUBLY_ROBUST

NIGHTS = 30
TURN = 10
"""The night, from 0, from which a policy that was better is worse."""
EACH_NIGHT, HELD, WHOLE_NIGHT = "each user and night", "each user, held for the month", "each night, for all users"
"""What has a coin of its own. Users who keep their coin are alike on all nights, as those who like a policy are; one
coin for a whole night is a training that went well or badly."""


@dataclass(frozen=True)
class Panel:
    """What each day says of two generators; all arrays [D, U], NaN where a user tells nothing."""

    ours: dict[str, np.ndarray]
    """By name as in `sgrec_core.evaluation.score.SIGNS`."""
    theirs: dict[str, np.ndarray]
    weights: Weights

    @classmethod
    def of(
        cls, recommended: Recommended, ours: str, theirs: str, weights: Weights, estimator: str = DOUBLY_ROBUST
    ) -> "Panel":
        """With the figures that ``weights`` ask for; ``estimator`` of the values: the gate's, or another."""

        def figures(name: str) -> dict[str, np.ndarray]:
            of = recommended.figures[name]
            told = {which: f"{which} {estimator}" if which != "ndcg" else "ndcg@10" for which in SIGNS}
            return {which: of[told[which]] for which in told if getattr(weights, which) and told[which] in of}

        return cls(figures(ours), figures(theirs), weights)

    def scores(self, day: int, users: np.ndarray, swapped: np.ndarray | None = None) -> Differences:
        """The score of ours minus theirs: of users [S] of the market, called 0 to S - 1, who are there on that day.

        For whom ``swapped`` [S] says so the two change places.
        """
        there = np.flatnonzero(self.present[day, users])
        swap = np.zeros(len(there), dtype=bool) if swapped is None else swapped[there]
        sides = []
        for first, second in ((self.ours, self.theirs), (self.theirs, self.ours)):
            figures = {
                name: np.where(swap, second[name][day, users[there]], first[name][day, users[there]]) for name in first
            }
            sides.append(OfUsers(there, figures))
        return score_differences(*sides, self.weights)

    @cached_property
    def present(self) -> np.ndarray:
        """Bool [D, U]: who decided or asked."""
        return np.any([np.isfinite(values) for values in self.ours.values()], axis=0)

    @cached_property
    def differences(self) -> np.ndarray:
        """Scores of all users of each day."""
        days, market = self.ours["ndcg"].shape
        found = np.full((days, market), np.nan)
        for day in range(days):
            users, scores = self.scores(day, np.arange(market))
            found[day, users] = scores
        return found

    @property
    def level(self) -> float:
        """Mean NDCG@10 of both, the unit of scores."""
        return float(np.nanmean((self.ours["ndcg"] + self.theirs["ndcg"]) / 2))


@dataclass(frozen=True)
class Month:
    """S users drawn from the market, called 0 to S - 1 here, over K nights."""

    users: np.ndarray
    """[S] user numbers in the market; one drawn twice is two users."""
    days: np.ndarray
    """[K] the evaluation day that each night is."""
    swapped: np.ndarray
    """Bool [K, S]: whether the optimised policy has the panel's second list, and the supervised one the first."""


@dataclass(frozen=True)
class Scenario:
    """Months of one kind: two generators between which a coin decides, and how much better it makes the first."""

    ours: str
    theirs: str
    coin: str
    effect: float
    users: int

    def __str__(self) -> str:
        return f"{self.ours} and {self.theirs}, {self.users} users, {self.effect:+.0%}, a coin for {self.coin}"


def loading(panel: Panel, effect: float, coin: str) -> float:
    """How far above one half the coin must give the optimised policy the better list, for it to be ``effect`` better.

    ``effect`` is relative to the supervised policy's NDCG@10. With level m of both and mean absolute difference a, a
    coin of 1/2 + t gives m + t * a and m - t * a, so that t = effect * m / (a * (2 + effect)).

    Raises:
        ValueError: even the better list every time is not as much better.
    """
    share = effect * panel.level / (_size(panel, coin) * (2 + effect))
    if not abs(share) <= 0.5:
        raise ValueError(f"an effect of {effect:+.0%} is more than these lists differ")
    return share


def draw_month(panel: Panel, users: int, effect: float, coin: str, draw: np.random.Generator) -> Month:
    """Users with replacement, days too; coins by `loading`, fair ones where a whole night has one."""
    days, market = panel.differences.shape
    chosen, of_night = draw.integers(0, market, users), draw.integers(0, days, NIGHTS)
    if coin == WHOLE_NIGHT:
        return Month(chosen, of_night, np.tile(draw.random((NIGHTS, 1)) < 0.5, (1, users)))
    gain = panel.differences[of_night[:, None], chosen]
    tosses = draw.random(gain.shape if coin == EACH_NIGHT else (1, users))
    if coin == HELD:
        gain = _user_means(panel)[chosen][None]
    gets_better = tosses < 0.5 + loading(panel, effect, coin)
    swapped = np.where(np.nan_to_num(gain) >= 0, ~gets_better, gets_better)
    return Month(chosen, of_night, np.broadcast_to(swapped, (NIGHTS, users)))


def turned(month: Month, night: int) -> Month:
    """The same month, but that from ``night`` (from 0) on the optimised policy is as much worse as it was better."""
    after = np.arange(len(month.days)) >= night
    return replace(month, swapped=month.swapped ^ after[:, None])


def nights_of(panel: Panel, month: Month) -> list[Differences]:
    """Optimised minus supervised, of the users who are there each night."""
    return [panel.scores(day, month.users, swapped) for day, swapped in zip(month.days, month.swapped, strict=True)]


@dataclass(frozen=True)
class Judging:
    """The gate's settings of a night."""

    margins: Margins
    draws: Resampling
    weights: Weights
    alpha: float


class Lazy(Mapping[tuple[str, str], Comparison]):
    """Comparisons that are made when the gate asks for them: most refusals need the first alone."""

    def __init__(self, rankings: Mapping[str, Ranking], pairs: Sequence[tuple[str, str]], judging: Judging) -> None:
        self.rankings, self.pairs, self.judging = rankings, pairs, judging
        self.made: dict[tuple[str, str], Comparison] = {}

    def __getitem__(self, pair: tuple[str, str]) -> Comparison:
        if pair not in self.pairs:
            raise KeyError(pair)
        if pair not in self.made:
            one, other = (self.rankings[role] for role in pair)
            self.made[pair] = compare(one, other, self.judging.draws, self.judging.weights)
        return self.made[pair]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)


class Coins:
    """Nights of rankings by coin, as the gate compares them."""

    def __init__(self, recommended: Recommended, ours: str, theirs: str) -> None:
        self.recommended, self.pair = recommended, (ours, theirs)

    def rankings(self, month: Month, night: int, draw: np.random.Generator) -> dict[str, Ranking]:
        """Optimised, supervised and popularity; the champion has either list of each user by a fair coin."""
        rows, slot = self.recommended.requests(int(month.days[night]), month.users)
        coins = {
            OPTIMISED: month.swapped[night],
            SUPERVISED: ~month.swapped[night],
            CHAMPION: draw.random(len(month.users)) < 0.5,
        }
        found = {role: self.recommended.mixed(role, self.pair, rows, slot, coin[slot]) for role, coin in coins.items()}
        popular = np.zeros(len(slot), dtype=bool)
        return found | {POPULARITY: self.recommended.mixed(POPULARITY, (POPULARITY, POPULARITY), rows, slot, popular)}

    def optimised_serves(self, month: Month, night: int, found: Evidence, judging: Judging) -> bool:
        """Whether a night that has a champion, of the supervised recipe, promotes the optimised policy."""
        rankings = self.rankings(month, night, np.random.default_rng([int(month.users[0]), night]))
        pairs = [(OPTIMISED, SUPERVISED)]
        pairs += [(one, other) for one in (OPTIMISED, SUPERVISED) for other in (CHAMPION, POPULARITY)]
        choice = decide(Lazy(rankings, pairs, judging), judging.margins, {(OPTIMISED, SUPERVISED): found})
        return choice.serves == OPTIMISED

    def refreshes(self, month: Month, night: int, judging: Judging) -> bool:
        """Whether a supervised policy that is the month's optimised one replaces the other, which is the champion."""
        found = self.rankings(month, night, np.random.default_rng(night))
        rankings = {SUPERVISED: found[OPTIMISED], CHAMPION: found[SUPERVISED], POPULARITY: found[POPULARITY]}
        pairs = [(SUPERVISED, CHAMPION), (SUPERVISED, POPULARITY)]
        return decide(Lazy(rankings, pairs, judging), judging.margins, {}).serves == SUPERVISED


def first_night(evidences: Sequence[Evidence], serves: Callable[[int], bool]) -> int:
    """Number from 1 of the first night whose evidence is enough and that ``serves`` (by number from 0); 0 for none."""
    return next((found.nights for night, found in enumerate(evidences) if found.is_enough and serves(night)), 0)


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """A share and Wilson's interval of it (JASA 1927); NaN without trials."""
    if not trials:
        return Interval(*[float("nan")] * 3)
    z, share = NormalDist().inv_cdf((1 + confidence) / 2), successes / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * (share * (1 - share) / trials + z * z / (4 * trials * trials)) ** 0.5
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def _size(panel: Panel, coin: str) -> float:
    """Mean absolute difference of what a coin swaps."""
    return float(np.nanmean(np.abs(panel.differences if coin == EACH_NIGHT else _user_means(panel))))


def _user_means(panel: Panel) -> np.ndarray:
    """[U] mean difference over the days, NaN for users who never came."""
    found = panel.differences
    return np.nansum(found, axis=0) / np.where(np.isfinite(found).any(axis=0), np.isfinite(found).sum(axis=0), np.nan)
