"""Months of nights in which the truth is known, because a coin says which of two lists is the optimised policy's.

Two trained generators rank the same decisions. For every user a coin says which of the two lists counts as the
optimised policy's; the supervised one has the other. A fair coin makes both policies the same in distribution, with the
noise of real lists; a loaded one gives the optimised policy the better list more often, so that it truly is better by a
share of NDCG@10 that is known. The gate's own functions then look at such nights.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from benchmarks.gate_market import Recommended
from sgrec_core.evaluation.gate import Comparison, Evidence, Margins, compare, decide
from sgrec_core.evaluation.ranking import Ranking, Resampling
from sgrec_core.evaluation.roles import CHAMPION, OPTIMISED, POPULARITY, SUPERVISED
from sgrec_core.evaluation.sequential import Night, evidence
from sgrec_core.evaluation.significance import Interval

NIGHTS = 30
EACH_NIGHT, HELD, WHOLE_NIGHT = "each user and night", "each user, held for the month", "each night, for all users"
"""What has a coin of its own. Users who keep their coin are alike on all nights, as those who like a policy are; one
coin for a whole night is a training that went well or badly."""


@dataclass(frozen=True)
class Panel:
    """NDCG@10 of two generators, mean of each user's decisions of a day; NaN where a user has none. Both [D, U]."""

    ours: np.ndarray
    theirs: np.ndarray

    @classmethod
    def of(cls, recommended: Recommended, ours: str, theirs: str) -> "Panel":
        return cls(*(user_days(recommended, name, "ndcg", 10) for name in (ours, theirs)))

    @property
    def differences(self) -> np.ndarray:
        return self.ours - self.theirs

    @property
    def level(self) -> float:
        """Mean of both."""
        return float(np.nanmean((self.ours + self.theirs) / 2))


def user_days(recommended: Recommended, name: str, metric: str, cutoff: int) -> np.ndarray:
    """[D, U] mean of a measure over each user's decisions of each day, NaN where there are none."""
    found = np.full((recommended.days, len(recommended.truth[name].clicks)), np.nan)
    for day in range(recommended.days):
        rows = np.flatnonzero(recommended.day == day)
        ranking = recommended.ranking(name, rows)
        found[day, np.unique(ranking.users)] = ranking.per_user(metric, cutoff)
    return found


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
    days, market = panel.ours.shape
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


def nights_of(panel: Panel, month: Month) -> list[Night]:
    """Optimised minus supervised, of the users who are there each night."""
    found = panel.differences[month.days[:, None], month.users]
    found = np.where(month.swapped, -found, found)
    return [(np.flatnonzero(np.isfinite(night)), night[np.isfinite(night)]) for night in found]


def evidence_by_night(nights: Sequence[Night], alpha: float) -> list[Evidence]:
    """What `sgrec_core.night.evaluation.evidence_of_recipes` has after each night."""
    against = [(users, -differences) for users, differences in nights]
    values, worse = evidence(nights), evidence(against)
    return [
        Evidence(nights=number + 1, users=len(users), value=float(value), against=float(other), needed=1 / alpha)
        for number, ((users, _), value, other) in enumerate(zip(nights, values, worse, strict=True))
    ]


class Lazy(Mapping[tuple[str, str], Comparison]):
    """Comparisons that are made when the gate asks for them: most refusals need the first alone."""

    def __init__(self, rankings: Mapping[str, Ranking], pairs: Sequence[tuple[str, str]], draws: Resampling) -> None:
        self.rankings, self.pairs, self.draws = rankings, pairs, draws
        self.made: dict[tuple[str, str], Comparison] = {}

    def __getitem__(self, pair: tuple[str, str]) -> Comparison:
        if pair not in self.pairs:
            raise KeyError(pair)
        if pair not in self.made:
            self.made[pair] = compare(self.rankings[pair[0]], self.rankings[pair[1]], self.draws)
        return self.made[pair]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)


@dataclass(frozen=True)
class Judging:
    """The gate's settings of a night."""

    margins: Margins
    draws: Resampling
    alpha: float


class Coins:
    """Nights of rankings by coin, as the gate compares them."""

    def __init__(self, recommended: Recommended, ours: str, theirs: str) -> None:
        self.recommended, self.names = recommended, (ours, theirs)
        days, market = recommended.days, len(recommended.truth[ours].clicks)
        # Decisions are sorted by day and user.
        keys, wanted = recommended.day * market + recommended.user, np.arange(days * market + 1)
        self.first = np.searchsorted(keys, wanted)
        self.market = market

    def rankings(self, month: Month, night: int, draw: np.random.Generator) -> dict[str, Ranking]:
        """Optimised, supervised and popularity; the champion has either list of each user by a fair coin."""
        start = self.first[month.days[night] * self.market + month.users]
        end = self.first[month.days[night] * self.market + month.users + 1]
        slot = np.repeat(np.arange(len(month.users)), end - start)
        before = np.cumsum(end - start) - (end - start)
        rows = start[slot] + np.arange(len(slot)) - before[slot]
        ours, theirs = (self.recommended.items[name][rows] for name in self.names)
        coins = {
            OPTIMISED: month.swapped[night],
            SUPERVISED: ~month.swapped[night],
            CHAMPION: draw.random(len(month.users)) < 0.5,
        }
        found = {
            role: self.recommended.as_ranking(role, np.where(coin[slot, None], theirs, ours), rows, slot)
            for role, coin in coins.items()
        }
        return found | {POPULARITY: self.recommended.ranking(POPULARITY, rows, slot)}

    def optimised_serves(self, month: Month, night: int, found: Evidence, judging: Judging, seed: int) -> bool:
        """Whether a night that has a champion promotes the optimised policy."""
        rankings = self.rankings(month, night, np.random.default_rng([seed, night]))
        pairs = [(OPTIMISED, SUPERVISED)]
        pairs += [(one, other) for one in (OPTIMISED, SUPERVISED) for other in (CHAMPION, POPULARITY)]
        return decide(Lazy(rankings, pairs, judging.draws), judging.margins, found).serves == OPTIMISED

    def refreshes(self, month: Month, night: int, judging: Judging, seed: int) -> bool:
        """Whether a supervised policy that is the month's optimised one replaces the other, which is the champion."""
        found = self.rankings(month, night, np.random.default_rng([seed, night]))
        rankings = {SUPERVISED: found[OPTIMISED], CHAMPION: found[SUPERVISED], POPULARITY: found[POPULARITY]}
        pairs = [(SUPERVISED, CHAMPION), (SUPERVISED, POPULARITY)]
        return decide(Lazy(rankings, pairs, judging.draws), judging.margins, None).serves == SUPERVISED


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
