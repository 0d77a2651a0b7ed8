"""How rewards get into the policy: stored groups or fresh ones, and A2PO before, with or after the day's clicks.

    python -m benchmarks.updates [--short] [--seeds 0 1 2 3 4] [--workers 1]

On the simulator (`benchmarks.update_arms`). *Mode*: from the champion, which knows days 0 to 2, one pass over its own
groups of day 3, stored, or fresh with one update a batch, at three learning rates. Each mode's rate is the one with the
highest eCPM on validation decisions, over both judges, of those that stay within a night's limits of clip fraction and
k3 and whose NDCG@10 is not surely below the champion's. *Order*: the day's clicks and the stored groups, at the rate of
the stored mode. Decisions of the test are read when all is chosen. Every arm is kept under ``--cache`` for the git
revision that made it, so a run that was stopped goes on.
"""

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks import update_arms
from benchmarks.report import Claim, may_keep, revision, write
from sgrec_core.evaluation.metrics import hit_rate, ndcg, per_user, target_ranks
from sgrec_core.evaluation.significance import Interval, relative_gain
from sgrec_core.generator import Generator, rank_items
from sgrec_core.generator.decoding import Beams
from sgrec_core.hashing import digest
from sgrec_core.settings import QualitySettings

LIST = 50
MODES = {"stored": "stored groups", "fresh": "fresh groups, one update a batch"}
RATES = (3e-5, 1e-4, 3e-4)
ORDERS = {
    "after": "clicks, then groups; KL to what the clicks made (a night)",
    "after, KL to the champion": "the same, KL to the champion",
    "together": "both losses in every step, KL to the champion",
    "before": "groups, then clicks",
}
OBJECTIVES = tuple(update_arms.OBJECTIVES)
JUDGED = OBJECTIVES[1:]
TRAINING = ("clip_fraction", "kl_reference", "signal_share")
MEASURES = {"NDCG@10": 10, "HR@50": 50, "eCPM@10": 10}


@dataclass(frozen=True)
class Arm:
    """One way from the champion to a policy; the rate is that of the policy optimisation."""

    kind: str
    objective: str = ""
    rate: float = 0.0

    @property
    def name(self) -> str:
        return self.kind if not self.objective else f"{self.kind}, {self.objective}, {self.rate:g}"


CHAMPION, SUPERVISED = Arm("champion"), Arm("supervised")
Figures = dict[str, np.ndarray]
"""By measure [N], of each decision."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a tiny market, two seeds: a check in a minute")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--workers", type=int, default=1, help="seeds at once, one thread each")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "sgrec" / "benchmarks")
    parser.add_argument("--output", type=Path, help="folder of the results; benchmarks/results by default")
    options = parser.parse_args()
    seeds = options.seeds or ([0, 1] if options.short else [0, 1, 2, 3, 4])
    options.cache.mkdir(parents=True, exist_ok=True)
    # What changed files made is not for later runs.
    kept = options.cache / "updates" / digest(revision(), options.short)
    with (
        tempfile.TemporaryDirectory() as passing,
        ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool,
    ):
        folder = kept if may_keep() else Path(passing)
        folder.mkdir(parents=True, exist_ok=True)

        def figures(arms: Iterable[Arm], half: str) -> list[dict[str, Figures]]:
            """Of each seed, by arm."""
            return list(pool.map(partial(measured, options, folder, list(arms), half), seeds))

        of_modes = [Arm(mode, objective, rate) for mode in MODES for objective in OBJECTIVES for rate in RATES]
        runs = {"validation": figures([CHAMPION, SUPERVISED, *of_modes], "validation")}
        told = {arm: training_of(folder, seeds, arm) for arm in of_modes}
        readings = Readings(update_arms.load(short=options.short, cache=options.cache), runs, told)
        rates = {mode: readings.chosen_rate(mode) for mode in MODES}
        of_orders = [Arm(order, name, rates["stored"]) for order in ORDERS for name in OBJECTIVES]
        # How far quality and value go together is seen by rate.
        of_orders += [Arm("after", name, rate) for name in JUDGED for rate in RATES if rate != rates["stored"]]
        for run, more in zip(runs["validation"], figures(of_orders, "validation"), strict=True):
            run |= more
        told |= {arm: training_of(folder, seeds, arm) for arm in of_orders}
        best = [arm for arm in of_modes if arm.rate == rates[arm.kind]]
        runs["test"] = figures([CHAMPION, SUPERVISED, *best, *of_orders], "test")
    report(options, seeds, readings, rates, of_orders)


def measured(
    options: argparse.Namespace, folder: Path, arms: Sequence[Arm], half: str, seed: int
) -> dict[str, Figures]:
    """Figures of the arms of one seed, trained where that is still to be done."""
    torch.set_num_threads(1)
    bench = Bench(update_arms.load(short=options.short, cache=options.cache), folder, seed, options.short)
    return {arm.name: bench.figures(arm, half) for arm in arms}


@dataclass
class Bench:
    """The arms of one seed."""

    problem: update_arms.Problem
    folder: Path
    seed: int
    short: bool

    def model(self, arm: Arm) -> Generator:
        path = path_of(self.folder, self.seed, arm)
        if not path.with_suffix(".json").exists():
            model, facts = self.trained(arm)
            save_file(model.tensors(), path)
            # Written last: it says that the weights are whole.
            path.with_suffix(".json").write_text(json.dumps(facts))
            print(f"seed {self.seed}: {arm.name} {json.dumps(facts)}", flush=True)
        else:
            model = update_arms.untrained(self.problem, self.seed)
            model.load_tensors(load_file(path))
        return model.eval()

    @cached_property
    def champion(self) -> Generator:
        return self.model(CHAMPION)

    @cached_property
    def beams(self) -> Beams:
        return update_arms.roll_out(self.champion, self.problem)

    def trained(self, arm: Arm) -> tuple[Generator, dict[str, float]]:
        problem, config = self.problem, update_arms.policy(self.seed, arm.rate)
        if arm == CHAMPION:
            return update_arms.champion(problem, self.seed, short=self.short), {}
        if arm == SUPERVISED:
            return update_arms.warm(self.champion, problem, self.seed), {}
        if arm.kind == "fresh":
            return update_arms.on_fresh(self.champion, problem, arm.objective, config)
        groups = update_arms.stored_groups(self.beams, problem, arm.objective)
        if arm.kind == "stored":
            return update_arms.on_stored(self.champion, problem, groups, config)
        if arm.kind == "after":
            return update_arms.on_stored(self.model(SUPERVISED), problem, groups, config)
        if arm.kind == "after, KL to the champion":
            return update_arms.mixed(self.model(SUPERVISED), problem, groups, config, self.champion)
        if arm.kind == "together":
            clicks = update_arms.training(self.seed)
            return update_arms.mixed(self.champion, problem, groups, config, self.champion, clicks)
        optimised = Arm("stored", arm.objective, arm.rate)
        model = update_arms.warm(self.model(optimised), problem, self.seed)
        return model, json.loads(path_of(self.folder, self.seed, optimised).with_suffix(".json").read_text())

    def figures(self, arm: Arm, half: str) -> Figures:
        """Of beams of 50, on decisions of ``half``."""
        path = path_of(self.folder, self.seed, arm).with_suffix(f".{half}.npz")
        if path.exists():
            return dict(np.load(path))
        decisions, ecpm = self.problem.halves[half].decisions, self.problem.halves[half].ecpm
        ranked = rank_items(self.model(arm), self.problem.trie, decisions.histories, width=LIST, batch_size=64)
        items = ranked.items.numpy()
        ranks = target_ranks(items, decisions.targets)
        found = {
            "NDCG@10": ndcg(ranks, 10),
            "HR@50": hit_rate(ranks, 50),
            "eCPM@10": np.take_along_axis(ecpm, items[:, :10], axis=1).mean(axis=1),
        }
        part = path.with_suffix(".part.npz")
        np.savez(part, **found)
        part.rename(path)
        return found


def path_of(folder: Path, seed: int, arm: Arm) -> Path:
    """Of an arm's weights."""
    return folder / f"{seed}-{digest(arm.name)}.safetensors"


def training_of(folder: Path, seeds: Sequence[int], arm: Arm) -> dict[str, float]:
    """Means over the seeds of what the trainings of an arm told."""
    facts = [json.loads(path_of(folder, seed, arm).with_suffix(".json").read_text()) for seed in seeds]
    return {name: float(np.mean([fact[name] for fact in facts])) for name in TRAINING}


@dataclass(frozen=True)
class Readings:
    """Figures of all seeds."""

    problem: update_arms.Problem
    runs: dict[str, list[dict[str, Figures]]]
    """By half, of each seed, by arm."""
    told: dict[Arm, dict[str, float]]
    """What trainings said of themselves."""

    def values(self, arm: Arm, measure: str, half: str) -> np.ndarray:
        """[seeds, users]"""
        users = self.problem.halves[half].decisions.users
        return np.stack([per_user(run[arm.name][measure], users) for run in self.runs[half]])

    def gain(self, arm: Arm, baseline: Arm, measure: str, half: str) -> Interval:
        return relative_gain(self.values(arm, measure, half), self.values(baseline, measure, half), seed=0)

    def within_limits(self, arm: Arm) -> bool:
        """Whether a night would find the training inside of its trust region."""
        limits, facts = QualitySettings(), self.told[arm]
        return facts["clip_fraction"] <= limits.clip_fraction_limit and facts["kl_reference"] <= limits.kl_limit

    def chosen_rate(self, mode: str) -> float:
        """See the module's docstring; the smallest rate where none qualifies."""

        def costs_nothing(rate: float) -> bool:
            arms = [Arm(mode, objective, rate) for objective in JUDGED]
            return all(
                self.within_limits(arm) and self.gain(arm, CHAMPION, "NDCG@10", "validation").upper >= 0 for arm in arms
            )

        def value(rate: float) -> float:
            arms = [Arm(mode, objective, rate) for objective in JUDGED]
            return float(np.mean([self.values(arm, "eCPM@10", "validation").mean() for arm in arms]))

        return max([rate for rate in RATES if costs_nothing(rate)] or RATES[:1], key=value)

    def row(self, arm: Arm, baseline: Arm, half: str) -> str:
        cells = [arm.kind, arm.objective, f"{arm.rate:g}" if arm.rate else ""]
        for measure in MEASURES:
            cells.append(f"{self.values(arm, measure, half).mean():.4g}")
            cells.append("" if arm == baseline else in_percent(self.gain(arm, baseline, measure, half)))
        facts = self.told.get(arm, {})
        cells += [f"{facts[name]:.3g}" if name in facts else "" for name in TRAINING]
        return "| " + " | ".join(cells) + " |"

    def table(self, arms: Iterable[Arm], baseline: Arm, half: str) -> list[str]:
        heads = ["arm", "objective", "rate"]
        heads += [head for measure in MEASURES for head in (measure, "gain, %")]
        heads += ["clip fraction", "k3, nats a token", "groups with signal"]
        header = ["| " + " | ".join(heads) + " |", "| " + " | ".join(["---"] * len(heads)) + " |"]
        return [*header, *(self.row(arm, baseline, half) for arm in (baseline, *arms))]


def report(
    options: argparse.Namespace, seeds: list[int], readings: Readings, rates: dict[str, float], orders: list[Arm]
) -> None:
    problem, told = readings.problem, readings.told
    rate = rates["stored"]
    modes = [arm for arm in told if arm.kind in MODES]
    best = [arm for arm in modes if arm.rate == rates[arm.kind]]
    pairs = [("clicks of a day over none", SUPERVISED, CHAMPION)]
    for name in OBJECTIVES:
        of_mode = {mode: Arm(mode, name, rates[mode]) for mode in MODES}
        pairs += [(f"{mode} over the champion, {name}", arm, CHAMPION) for mode, arm in of_mode.items()]
        pairs.append((f"fresh over stored, {name}", of_mode["fresh"], of_mode["stored"]))
        after = Arm("after", name, rate)
        pairs.append((f"after over clicks alone, {name}", after, SUPERVISED))
        others = [order for order in ORDERS if order != "after"]
        pairs += [(f"{order} over after, {name}", Arm(order, name, rate), after) for order in others]
    claims = [
        Claim.percent(f"{measure}: {words}", readings.gain(arm, baseline, measure, "test"))
        for words, arm, baseline in pairs
        for measure in MEASURES
    ]
    users = {half: len(np.unique(each.decisions.users)) for half, each in problem.halves.items()}
    text = "\n".join(
        [
            f"Simulator, {users['validation']:,} users for validation and {users['test']:,} for the test, {len(seeds)}"
            f" seeds, {len(problem.targets):,} groups of {update_arms.GROUP} of decisions that the champion does not"
            f" know, one pass in batches of {update_arms.BATCH}. The claims are of the test users. Intervals (95%) are"
            " over seeds and users. eCPM@10 is the mean of the first ten items by the click model of the feedback day."
            " Clip fraction and k3 are means over the steps, as a night tells them. No memory of transitions.",
            "",
            "Orders of the day's clicks and its groups:",
            "",
            *(f"- *{order}*: {words}" for order, words in ORDERS.items()),
            "",
            "## Validation: modes, gains over the champion",
            "",
            *readings.table(modes, CHAMPION, "validation"),
            "",
            "Chosen: " + ", ".join(f"{MODES[mode]} at {found:g}" for mode, found in rates.items()) + ".",
            "",
            "## Validation: orders, gains over the clicks alone",
            "",
            *readings.table(orders, SUPERVISED, "validation"),
            "",
            "## Test: the chosen modes, gains over the champion",
            "",
            *readings.table(best, CHAMPION, "test"),
            "",
            "## Test: orders, gains over the clicks alone",
            "",
            *readings.table(orders, SUPERVISED, "test"),
        ]
    )
    details = {
        "rates": rates,
        "training": {arm.name: facts for arm, facts in told.items()},
        "shape": update_arms.SHAPE,
    }
    name = "updates" + ("-short" if options.short else "")
    print(write(name, claims, seeds=seeds, text=text, details=details, folder=options.output).read_text())


def in_percent(interval: Interval) -> str:
    return f"{100 * interval.value:+.1f} [{100 * interval.lower:+.1f}, {100 * interval.upper:+.1f}]"


if __name__ == "__main__":
    main()
