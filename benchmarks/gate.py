"""The gate itself is measured, on the simulator where the truth is known.

    python -m benchmarks.gate [--short] [--minutes 18] [--cache FOLDER] [--output FOLDER]

Power comes first: what one night can see. Then estimates against the simulated A/B test; nights whose truth is clear,
and whether the gate agrees; months in which a coin makes both candidates the same, or one of them truly better or
worse, and how often the gate promotes it. The gate's own functions decide throughout. Every piece is kept under
``--cache`` by its code: a run that was stopped goes on where it was.
"""

import argparse
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks import gate_report
from benchmarks.gate_market import AGAIN, NIGHT, OPTIMISED, Kept, OutOfTimeError, Workshop, code_key
from benchmarks.gate_months import (
    EACH_NIGHT,
    HELD,
    NIGHTS,
    TURN,
    WHOLE_NIGHT,
    Coins,
    Judging,
    Panel,
    Scenario,
    draw_month,
    first_night,
    loading,
    nights_of,
    turned,
)
from benchmarks.gate_nights import agreement_nights
from benchmarks.gate_requests import Recommended
from benchmarks.report import write
from sgrec_core.hashing import digest
from sgrec_core.night.evaluation import evidence_by_night, margins_of, resampling, weights_of
from sgrec_core.settings import EvaluationSettings

# A third of a night's resamples: the bounds of an interval then scatter by a tenth of its deviation.
SETTINGS = EvaluationSettings(bootstrap_samples=300)
JUDGING = Judging(margins_of(SETTINGS), resampling(SETTINGS), weights_of(SETTINGS), SETTINGS.alpha)
COUNTED = replace(JUDGING.weights, ecpm=0.0, gmv=0.0, dislikes=0.0)
"""What decides in nights of these sizes: their logged answers are worth less than `LEAST_EFFECTIVE` impressions, so
values can only refuse."""
DEFINITIONS = (
    "sgrec_core.evaluation.gate:compare",
    "sgrec_core.evaluation.gate:decide",
    "sgrec_core.evaluation.sequential:evidence",
    "sgrec_core.evaluation.ranking:Ranking",
    "sgrec_core.night.evaluation:evidence_by_night",
)
EFFECTS = (0.0, 0.05, 0.10, 0.20, -0.05)
"""Of the optimised policy, relative to the supervised one's NDCG@10."""
REFRESHES = (0.0, 0.05, -0.05, -0.10)
"""Of a night's supervised policy, relative to the champion's."""


@dataclass(frozen=True)
class Size:
    """How much is done."""

    users: tuple[int, ...]
    """Held-out users of a night: those of the default night, and more."""
    months: int
    """Of candidates that a coin makes the same."""
    planted: int
    """Months of every other kind."""
    checked: int
    """Months of a policy that truly is better whose nights go through the one-night margins as well."""
    refreshes: int
    """Nights of a supervised policy against the champion."""
    turns: int
    """Months of a recipe that turns."""


FULL = Size(users=(139, 500, 1500), months=1000, planted=200, checked=30, refreshes=100, turns=20)
BRIEF = Size(users=(60, 150), months=20, planted=10, checked=5, refreshes=10, turns=5)


def scenarios(size: Size) -> Iterable[Scenario]:
    for users in size.users:
        for coin in (EACH_NIGHT, HELD):
            yield from (Scenario(OPTIMISED, NIGHT, coin, effect, users) for effect in EFFECTS)
        # Whoever trains twice has two policies that differ, and no coin among users takes that away.
        yield from (Scenario(ours, NIGHT, WHOLE_NIGHT, 0.0, users) for ours in (OPTIMISED, AGAIN))


def months(recommended: Recommended, scenario: Scenario, size: Size) -> dict[str, np.ndarray]:
    """Of each month: the night by which evidence is enough, and that in which the gate promotes; 0 for none.

    The second is -1 for months that were not put through the one-night margins.
    """
    panel = Panel.of(recommended, scenario.ours, scenario.theirs, COUNTED)
    coins = Coins(recommended, scenario.ours, scenario.theirs)
    draw = np.random.default_rng([1, scenario.users])
    count = size.months if scenario.effect == 0 and scenario.coin != WHOLE_NIGHT else size.planted
    shown, promoted = np.zeros(count, dtype=int), np.zeros(count, dtype=int)
    checked = 0
    for number in range(count):
        month = draw_month(panel, scenario.users, scenario.effect, scenario.coin, draw)
        found = evidence_by_night(nights_of(panel, month), JUDGING.alpha)
        shown[number] = first_night(found, lambda night: True)
        if scenario.effect > 0 and shown[number]:
            checked += 1
            if checked > size.checked:
                promoted[number] = -1
                continue
        promoted[number] = first_night(
            found,
            lambda night, month=month, found=found: coins.optimised_serves(month, night, found[night], JUDGING),
        )
    return {"shown": shown, "promoted": promoted}


def refreshes(recommended: Recommended, effect: float, users: int, size: Size) -> dict[str, np.ndarray]:
    """Of each night, its users drawn anew: whether the supervised policy replaces the champion; two trainings."""
    panel = Panel.of(recommended, AGAIN, NIGHT, COUNTED)
    coins = Coins(recommended, AGAIN, NIGHT)
    draw = np.random.default_rng([2, users])
    served = [
        coins.refreshes(draw_month(panel, users, effect, EACH_NIGHT, draw), 0, JUDGING) for _ in range(size.refreshes)
    ]
    return {"served": np.array(served)}


def turns(recommended: Recommended, users: int, size: Size) -> dict[str, np.ndarray]:
    """Of months whose optimised policy is 20% better, and from night `TURN` on 20% worse: nights of it [months, 30].

    ``enough``: whether evidence is; ``served``: whether the gate promotes it.
    """
    panel, coins = Panel.of(recommended, OPTIMISED, NIGHT, COUNTED), Coins(recommended, OPTIMISED, NIGHT)
    draw = np.random.default_rng([3, users])
    enough, served = (np.zeros((size.turns, NIGHTS), dtype=bool) for _ in range(2))
    for number in range(size.turns):
        month = turned(draw_month(panel, users, 0.2, EACH_NIGHT, draw), TURN)
        found = evidence_by_night(nights_of(panel, month), JUDGING.alpha)
        for night in range(TURN, NIGHTS):
            enough[number, night] = found[night].is_enough
            served[number, night] = enough[number, night] and coins.optimised_serves(
                month, night, found[night], JUDGING
            )
        enough[number, :TURN] = [one.is_enough for one in found[:TURN]]
    return {"enough": enough, "served": served}


def measure(options: argparse.Namespace, kept: Kept) -> gate_report.Measured:
    size = BRIEF if options.short else FULL
    # First of all: the code that is running is that of the files only as long as nobody edits them.
    key = code_key(*DEFINITIONS, files=("gate", "gate_months", "gate_nights", "gate_requests"))
    workshop = Workshop(kept, options.cache, short=options.short)
    recommended = workshop.recommended()
    power = gate_report.power(recommended, size.users, JUDGING.weights)
    print("\n".join(power.lines), flush=True)

    def named(*parts: object) -> str:
        return digest(key, workshop.key, repr(SETTINGS), size, *parts)

    days = [
        kept.piece(
            f"agreement on day {day} with {users} users",
            named("agreement", day, users),
            lambda day=day, users=users: agreement_nights(recommended, day, users, JUDGING),
        )
        for users in size.users
        for day in range(recommended.days)
    ]
    of_months, out_of_reach = {}, []
    for scenario in scenarios(size):
        try:
            if scenario.coin != WHOLE_NIGHT:
                panel = Panel.of(recommended, scenario.ours, scenario.theirs, COUNTED)
                loading(panel, scenario.effect, scenario.coin)
        except ValueError as error:
            out_of_reach.append(f"{scenario}: {error}")
            continue
        of_months[scenario] = kept.piece(
            f"months of {scenario}",
            named("months", scenario),
            lambda scenario=scenario: months(recommended, scenario, size),
        )
    of_nights = {
        (users, effect): kept.piece(
            f"refreshes with {users} users, {effect:+.0%}",
            named("refreshes", users, effect),
            lambda users=users, effect=effect: refreshes(recommended, effect, users, size),
        )["served"]
        for users in size.users
        for effect in REFRESHES
    }
    of_turns = {
        users: kept.piece(
            f"a recipe that turns, {users} users",
            named("turns", users),
            lambda users=users: turns(recommended, users, size),
        )
        for users in size.users
    }
    nights = {name: np.concatenate([day[name] for day in days]) for name in days[0]}
    return gate_report.Measured(recommended, power, nights, of_months, out_of_reach, of_nights, of_turns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a small market: a check in a minute or two")
    parser.add_argument("--minutes", type=float, help="begin no further piece after so many; run again to go on")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "sgrec" / "benchmarks")
    parser.add_argument("--output", type=Path, help="folder of the results; benchmarks/results by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    until = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    try:
        found = measure(options, Kept(options.cache, until))
    except OutOfTimeError as error:
        print(f"out of time before {error}: what was done is kept, the same command goes on", file=sys.stderr)
        sys.exit(75)  # EX_TEMPFAIL
    page = write(
        "gate" + ("-short" if options.short else ""),
        gate_report.claims(found),
        seeds=[0],
        text=gate_report.text(found),
        details=gate_report.details(found),
        folder=options.output,
    )
    print(page.read_text())


if __name__ == "__main__":
    main()
