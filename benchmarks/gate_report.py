"""What the measurement of the gate says: claims, tables and plain words."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks import gate_clipping
from benchmarks.gate_market import AGAIN, NIGHT, OPTIMISED
from benchmarks.gate_months import EACH_NIGHT, NIGHTS, TURN, Panel, Scenario
from benchmarks.gate_months import wilson as of_wilson
from benchmarks.gate_nights import (
    CLEAR,
    CLOSE,
    DEFAULT,
    TRUTHS,
    Agreement,
    Power,
    agreements,
    correlation_table,
    truth_of,
    user_estimates,
)
from benchmarks.gate_requests import Recommended
from benchmarks.report import Claim
from sgrec_core.evaluation.roles import POPULARITY
from sgrec_core.evaluation.score import Weights
from sgrec_core.evaluation.significance import Interval
from sgrec_core.evaluation.simulated_ab import METRICS

ONE_DAY = ", one day"
CLAIMED = ("NDCG@10", "ecpm direct", "ecpm doubly_robust", "score, eCPM 0.25, doubly_robust")
"""Estimates of which the claims tell; the tables tell of all."""
Row = tuple[str, str, str, int, Interval, Interval]
PAIRS = ((OPTIMISED, NIGHT), (AGAIN, NIGHT), (NIGHT, POPULARITY))
"""Whose differences power is computed from: a policy and its start, two trainings, a policy and the floor."""
ASKED = (0.05, 0.10, 0.20)
AGREEMENT, FALSE_PROMOTIONS, LEAST_NIGHTS = 0.95, 0.05, 30
NDCG = Weights(ndcg=1.0, ecpm=0.0, gmv=0.0, dislikes=0.0)
TEXT = """\
A simulated market of {market:,} users and {items} items. Generators are trained on its first days; optimised ones go on
with the day after. All rank the decisions of the evaluation days, on which the logging policy filled the slates. On the
days after those each serves all users in a simulated A/B test with common random numbers: that is the truth. No user
is held out; what is evaluated lies on later days than all training. The gate's own functions decide, with the default
settings but for fewer resamples.

## Power

In shares of the second policy's NDCG@10, at 80% power and 5%. *Lasting* is the share of the variance that is a user's
own on all days: more nights of the same users do not take it away, more users do. *Nights* are of the same users,
looked at once, together.

{power}

## Generators

{generators}

## Estimates and truth

Spearman's rank correlation with the A/B test (Kendall's in the claims); intervals over users, who are resampled on both
sides at once. A low dislike rate ranks high. *Close*: generators within 5% of the best by that truth. A score is that
against `night`, with the weight of eCPM beside NDCG@10, which weighs 1.

{correlations}

{few}

## What clipping does to expected eCPM

All days together, against the A/B test. The mean weight is 1 where propensities are right and nothing is clipped away:
what lacks of it is what logged answers do not tell, and there the doubly robust estimate is the model's. The model has
learnt from slates that the logging policy filled with what it knew users would like, and takes other items for as good.

{clipping}

## Agreement

A night is a candidate, a champion, an evaluation day and a draw of users. The gate is right if it promotes what has the
higher true figure and keeps what has not. Only pairs whose true difference is sure count. Wilson's intervals take
nights as independent, though many share their pair and their users.

{agreement}

## Months

Months of {nights} nights with the same users, drawn from the market with replacement: the gate's evidence on both
candidates, then the one-night margins against a champion that is either of them by coin. Differences are those of real
lists, the coin says whose they are. *+10%*: the coin is loaded so that the optimised policy's NDCG@10 is truly 10%
higher. One coin for a whole night is a training that went well or badly, which the evidence does not claim to see.

{months}

## A recipe that turns

The optimised policy is 20% better for {turn} nights, then 20% worse: what remains of the evidence, and whether the
one-night margins refuse it.

{turns}

## A new supervised policy and the champion

By the one-night rule, which is that of the champion's own recipe, trained a night later; one of another recipe needs
evidence over nights. Users and coins are drawn anew for each night, so a month is as many independent tries. Where both
are truly alike (+0%) a replacement changes nothing for users.

{refreshes}
"""


@dataclass(frozen=True)
class PowerTable:
    found: dict[tuple[str, str, str], Power]
    """By both generators and what is compared."""
    lines: list[str]
    """Markdown."""


@dataclass(frozen=True)
class Measured:
    """All results."""

    recommended: Recommended
    power: PowerTable
    nights: dict[str, np.ndarray]
    """Columns of `agreement_nights`."""
    months: dict[Scenario, dict[str, np.ndarray]]
    out_of_reach: list[str]
    refreshes: dict[tuple[int, float], np.ndarray]
    """By users and effect: of each night, whether the champion was replaced."""
    turns: dict[int, dict[str, np.ndarray]]
    """By users: of months whose optimised policy turns, nights [months, 30] with enough evidence, and served."""

    @cached_property
    def correlations(self) -> list[Row]:
        """Rank correlations of one night's estimates, and of those of all days."""
        every = {}
        for words, days in ((ONE_DAY, slice(1)), (", all days", slice(None))):
            every |= {name + words: values for name, values in user_estimates(self.recommended, days).items()}
        return correlation_table(every, self.recommended)

    @cached_property
    def agreements(self) -> list[Agreement]:
        return agreements(self.recommended, self.nights)


def wilson(successes: int, trials: int) -> Interval:
    """A share and its interval, without the dust of rounding."""
    found = of_wilson(successes, trials)
    return Interval(*(round(value, 9) for value in (found.value, found.lower, found.upper)))


def power(recommended: Recommended, sizes: tuple[int, ...], weights: Weights) -> PowerTable:
    """Before any verdict: what a night of so many users can see, and what it would take to see more."""
    columns = ["difference of", "by", "deviation", "lasting", *(f"{users:,} users" for users in sizes)]
    columns += [f"users for {effect:.0%}" for effect in ASKED] + [f"nights for 10%, {max(sizes):,} users"]
    lines, found = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"], {}
    for ours, theirs in PAIRS:
        for by, asked in (("NDCG@10", NDCG), ("score", weights)):
            panel = Panel.of(recommended, ours, theirs, asked)
            one = found[ours, theirs, by] = Power.of(panel.differences, float(np.nanmean(panel.theirs["ndcg"])))
            cells = [f"{ours} - {theirs}", by, f"{one.deviation:.3f}", f"{one.lasting:.2f}"]
            cells += [f"{one.detectable(users):.1%}" for users in sizes]
            cells += [f"{one.users_for(effect):,}" for effect in ASKED]
            nights = one.nights_for(0.10, max(sizes))
            cells.append(f"{nights:.0f}" if np.isfinite(nights) else "none do")
            lines.append("| " + " | ".join(cells) + " |")
    return PowerTable(found, lines)


def claims(found: Measured) -> list[Claim]:
    """What a reader asks first; everything else stands in the tables."""
    result = []
    one = found.power.found[PAIRS[0][0], PAIRS[0][1], "NDCG@10"]
    for users in sorted(set(found.nights["users"].tolist())):
        result.append(
            Claim(
                name=f"smallest difference in NDCG@10 that a night of {users:,} users tells, {' - '.join(PAIRS[0])}",
                value=100 * one.detectable(users), interval=None, unit="% of NDCG@10", goal="", met=None,
            )
        )  # fmt: skip
    for estimate, metric, which, count, spearman, _ in found.correlations:
        if estimate.removesuffix(ONE_DAY) in CLAIMED and estimate.endswith(ONE_DAY) and metric in ("CTR", "revenue"):
            words = "all" if which == "all" else f"within {CLOSE:.0%} of the best:"
            result.append(
                Claim(
                    name=f"Spearman, {estimate} and true {metric}, {words} {count} generators",
                    value=spearman.value, interval=(spearman.lower, spearman.upper), unit="", goal="", met=None,
                )
            )  # fmt: skip
    for one_score in found.agreements:
        if one_score.score != DEFAULT:
            continue
        chosen = one_score.clear
        share = wilson(int(one_score.right[chosen].sum()), int(chosen.sum()))
        result.append(
            Claim.percent(
                f"nights that agree with a clear truth ({one_score.metric}; {chosen.sum()} nights)",
                share,
                goal=f">= {AGREEMENT:.0%} of at least {LEAST_NIGHTS}",
                met=bool(chosen.sum() >= LEAST_NIGHTS and share.value >= AGREEMENT),
            )
        )
    for scenario, columns in found.months.items():
        if scenario.coin == EACH_NIGHT:
            result += _month_claims(scenario, columns)
    for (users, effect), served in found.refreshes.items():
        if effect <= 0:
            result.append(
                Claim.percent(
                    f"nights in which a policy of its recipe, {effect:+.0%}, replaces the champion, {users} users",
                    wilson(int(served.sum()), len(served)),
                )
            )
    return result


def _month_claims(scenario: Scenario, columns: Mapping[str, np.ndarray]) -> list[Claim]:
    shown, promoted = columns["shown"], columns["promoted"]
    if scenario.effect > 0:
        share = wilson(int((shown > 0).sum()), len(shown))
        return [Claim.percent(f"months that show an optimised policy that is better: {scenario}", share)]
    share = wilson(int((promoted > 0).sum()), len(promoted))
    null = scenario.effect == 0 and scenario.coin == EACH_NIGHT
    goal = f"<= {FALSE_PROMOTIONS:.0%}" if null else ""
    met = share.value <= FALSE_PROMOTIONS if null else None
    return [Claim.percent(f"months that promote an optimised policy: {scenario}", share, goal=goal, met=met)]


def text(found: Measured) -> str:
    def lines(of_part: list[str]) -> str:
        return "\n".join(of_part).strip()

    return TEXT.format(
        market=found.recommended.users,
        items=len(found.recommended.catalogue),
        nights=NIGHTS,
        power=lines(found.power.lines),
        generators=lines(_generators(found.recommended)),
        correlations=lines(_correlations(found)),
        few=_few(found),
        clipping=lines(gate_clipping.table(found.recommended)),
        agreement=lines(_agreement(found)),
        months=lines(_months(found)),
        turn=TURN,
        turns=lines(_turns(found)),
        refreshes=lines(_refreshes(found)),
    )


def _generators(recommended: Recommended) -> list[str]:
    names = ["ndcg@10", "hit_rate@50", "ecpm direct", "ecpm doubly_robust", "ecpm inverse_propensity"]
    columns = ["generator", *names, "true eCPM", "true CTR", "true GMV", "true dislike rate"]
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for name, outcomes in recommended.truth.items():
        values = [float(np.nanmean(recommended.figures[name].get(which, np.nan))) for which in names]
        values.append(1000 * float(outcomes.revenue.sum() / outcomes.impressions.sum()))
        values += [truth_of(outcomes, metric) for metric in ("CTR", "GMV", "dislike rate")]
        lines.append("| " + " | ".join([name, *(f"{value:.4g}" for value in values)]) + " |")
    return lines


def _correlations(found: Measured) -> list[str]:
    kinds = [(metric, which) for metric in TRUTHS for which in ("all", "close")]
    cells: dict[str, dict[tuple[str, str], str]] = {}
    counts: dict[tuple[str, str], int] = {}
    for estimate, metric, which, count, spearman, _ in found.correlations:
        if not estimate.endswith(ONE_DAY):
            continue
        counts[metric, which] = count
        text = f"{spearman.value:+.2f} [{spearman.lower:+.2f}, {spearman.upper:+.2f}]"
        cells.setdefault(estimate, {})[metric, which] = text
    kinds = [kind for kind in kinds if kind in counts]
    columns = ["estimate", *(f"{metric}, {counts[metric, which]} {which}" for metric, which in kinds)]
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    return lines + ["| " + " | ".join([name, *(of[kind] for kind in kinds)]) + " |" for name, of in cells.items()]


def _few(found: Measured) -> str:
    """What so few generators can tell."""
    close = {metric: count for _, metric, which, count, *_ in found.correlations if which == "close"}
    count = len(found.recommended.items)

    def deviation(n: int) -> float:
        """Of Kendall's tau without any relation."""
        return (2 * (2 * n + 5) / (9 * n * (n - 1))) ** 0.5

    few = max(close.values(), default=0)
    words = f"Without any relation Kendall's tau of {count} generators scatters by {deviation(count):.2f}"
    if few > 1:
        words += f", of {few} by {deviation(few):.2f}: of those close to the best nothing is shown"
    needed = next(n for n in range(2, 1000) if 2.8 * deviation(n) <= 0.5)
    return f"{words}. It takes {needed} generators to tell a tau of .5 from none."


BANDS = ((0, 0.5), (0.5, 1), (1, 2), (2, np.inf))


def _agreement(found: Measured) -> list[str]:
    nights = found.nights
    lines = [
        "| truth | true difference over detectable one | nights | pairs | agrees | better: promoted, kept |"
        " worse: kept, promoted |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    own = [one for one in found.agreements if one.score == DEFAULT]
    for one in own:
        ratio = np.abs(one.truth) / one.detectable
        for low, high in BANDS:
            chosen = one.sure & (ratio > low) & (ratio <= high)
            if chosen.any():
                lines.append(_band(one, nights, chosen, f"{one.metric} | {low:g} to {high:g}"))
    lines += [f"\nClear: above {CLEAR:g} times what the night detects. What the gate said where it was wrong then:\n"]
    for one in own:
        said = Counter(reason or "promoted" for reason in one.reason[one.clear & ~one.right].tolist())
        words = ", ".join(f"{reason} {count}" for reason, count in said.most_common())
        lines.append(f"- {one.metric}: {words or 'nothing'}")
    largest = nights["users"] == nights["users"].max()
    lines += [
        f"\nBy the score that decides: nights of {nights['users'].max():,} users, all pairs whose truth is sure.\n",
        "| truth | score | nights | pairs | agrees | better: promoted, kept | worse: kept, promoted |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        _band(one, nights, one.sure & largest, f"{one.metric} | {one.score}")
        for one in found.agreements
        if one.score != DEFAULT
    ]
    return lines


def _band(one: Agreement, nights: Mapping[str, np.ndarray], chosen: np.ndarray, words: str) -> str:
    better, worse, promoted = chosen & (one.truth > 0), chosen & (one.truth <= 0), one.promoted
    share = wilson(int(one.right[chosen].sum()), int(chosen.sum()))
    pairs = set(zip(nights["candidate"][chosen].tolist(), nights["champion"][chosen].tolist(), strict=True))
    return (
        f"| {words} | {chosen.sum():,} | {len(pairs)}"
        f" | {share.value:.1%} [{share.lower:.1%}, {share.upper:.1%}]"
        f" | {(better & promoted).sum()}, {(better & ~promoted).sum()}"
        f" | {(worse & ~promoted).sum()}, {(worse & promoted).sum()} |"
    )


def _months(found: Measured) -> list[str]:
    columns = ["months", "evidence is enough", "by which night (median)", "promoted, of those with evidence and tried"]
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for scenario, months in found.months.items():
        shown, promoted = months["shown"], months["promoted"]
        median = f"{np.median(shown[shown > 0]):.0f}" if shown.any() else ""
        tried = int(((shown > 0) & (promoted >= 0)).sum())
        cells = [str(scenario), f"{(shown > 0).mean():.1%}", median, f"{(promoted > 0).sum()} of {tried}"]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", *(f"Out of reach: {one}." for one in found.out_of_reach)]


def _turns(found: Measured) -> list[str]:
    columns = ["users", "months shown before", "evidence still enough on the last night", "nights served after, of 20"]
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for users, nights in found.turns.items():
        before, last = nights["enough"][:, TURN - 1].mean(), nights["enough"][:, -1].mean()
        served = nights["served"].sum(axis=1)
        lines.append(f"| {users:,} | {before:.1%} | {last:.1%} | mean {served.mean():.1f}, most {served.max()} |")
    return lines


def _refreshes(found: Measured) -> list[str]:
    lines = ["", "| users | truly | replaces, a night | at least once a month |", "| --- | --- | --- | --- |"]
    for (users, effect), served in found.refreshes.items():
        share = wilson(int(served.sum()), len(served))
        monthly = 1 - (1 - share.value) ** NIGHTS
        lines.append(
            f"| {users:,} | {effect:+.0%} | {share.value:.1%} [{share.lower:.1%}, {share.upper:.1%}] | {monthly:.1%} |"
        )
    return lines


def details(found: Measured) -> dict[str, Any]:
    """What the text has no room for."""
    truth = {
        name: {metric: truth_of(outcomes, metric) for metric in METRICS}
        for name, outcomes in found.recommended.truth.items()
    }
    months = {
        str(scenario): {
            name: np.bincount(np.maximum(column, 0), minlength=31).tolist() for name, column in both.items()
        }
        for scenario, both in found.months.items()
    }
    correlations = [
        {"estimate": estimate, "truth": metric, "which": which, "generators": count, "spearman": vars(spearman)}
        | {"kendall": vars(kendall)}
        for estimate, metric, which, count, spearman, kendall in found.correlations
    ]
    return {
        "truth": truth,
        "correlations": correlations,
        "months": months,
        "reasons": dict(Counter(found.nights[f"reason:{DEFAULT}"].tolist())),
    }
