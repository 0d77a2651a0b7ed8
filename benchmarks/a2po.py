"""A2PO against business-only optimisation and two controls, from one supervised checkpoint per seed.

    python -m benchmarks.a2po --world scientific [--short] [--data ../shared/data] [--seeds 0 1 2 3 4] [--workers 2]
    python -m benchmarks.a2po --world simulator  [--short] ...
    python -m benchmarks.a2po --world scientific --tune      # validation figures of a grid of settings

Per seed: supervised training; one rollout group of 16 by constrained beam search for every feedback decision; then the
same stored groups and the same number of updates under each objective; adv_sum and reward_sum, which learn from groups
without business variance as well, see more groups in an update. Test decisions are scored once, at the end, the whole
test set. What a seed gave is kept under ``--cache`` for the git revision that made it.
"""

import argparse
import copy
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks import scientific
from benchmarks.report import Claim, may_keep, revision, write
from benchmarks.world import Decisions, World
from sgrec_core.evaluation.metrics import hit_rate, ndcg, per_user, target_ranks
from sgrec_core.evaluation.significance import Interval, relative_gain
from sgrec_core.generator import Generator, GeneratorConfig, TrainingConfig, rank_items, train_supervised
from sgrec_core.generator.device import device
from sgrec_core.hashing import digest
from sgrec_core.policy import PolicyConfig, StoredGroups, train_stored
from sgrec_core.rewards.advantages import Groups
from sgrec_core.rewards.fusion import Advantages, fuse, fusion_facts

GROUP = 16
BEAM, LIST = 50, 20
SHARE = 0.05
"""The small semantic sampling ratio p."""
SHAPE = {"width": 128, "layers": 2, "heads": 4, "dropout": 0.2}
SUPERVISED = {
    "epochs": 30,
    "batch_size": 128,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "label_smoothing": 0.0,
    "bfloat16": True,
}
PROMPTS = 10_000
"""At most so many rollout groups."""
JUDGES = {"scientific": ("embedding", "text_model"), "simulator": ("embedding", "noisy_oracle")}
"""Of the judges that a world has, those that are compared."""
POLICY = {
    "scientific": {"epochs": 3, "learning_rate": 3e-4, "batch_size": 32, "clip": 0.2, "beta": 1e-3},
    "simulator": {"epochs": 1, "learning_rate": 3e-4, "batch_size": 64, "clip": 0.2, "beta": 1e-3},
}
"""Scientific: chosen on 3,000 validation users in a scouting run, by business and a2po alike (docs/lab-notes.md,
"rollouts that meet new targets"). Simulator: with ``--tune``, by business and a2po alike."""
GRID = {
    "scientific": [(rate, epochs) for rate in (1e-4, 3e-4) for epochs in (1, 3, 6)],
    "simulator": [(rate, 1) for rate in (3e-5, 1e-4, 3e-4, 1e-3)],
}
TUNING_SEED = 1000
ARMS = (
    "business",
    "a2po/embedding",
    "a2po/noisy_oracle",
    "permuted control/noisy_oracle",
    "a2po_centred/noisy_oracle",
    "permuted centred control/noisy_oracle",
)
"""What the simulated A/B test serves; the first is the baseline."""
OUTCOME = "outcome:"
MEASURES = {"HR@10": hit_rate, "NDCG@10": ndcg}
PAPER = {"HR@10": 0.034, "NDCG@10": 0.053}
"""Gain of S-GRec over MiniOneRec on Office, as S-GRec reports it (arXiv 2602.10606)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=["scientific", "simulator"], required=True)
    parser.add_argument("--short", action="store_true", help="a small part of the data, two seeds: a check in minutes")
    parser.add_argument(
        "--tune", action="store_true", help="print validation figures of the grid; no test decision is read"
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the public sets")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--workers", type=int, default=2, help="seeds at once, one thread each")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "sgrec" / "benchmarks")
    parser.add_argument("--output", type=Path, help="folder of the results; benchmarks/results by default")
    options = parser.parse_args()
    seeds = options.seeds or ([0, 1] if options.short else [0, 1, 2, 3, 4])
    if options.tune:
        tune(options)
        return
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        runs = list(pool.map(partial(run_seed, options), seeds))
    report(options, seeds, runs)


def load_world(options: argparse.Namespace) -> World:
    if options.world == "scientific":
        return scientific.world(options.data, short=options.short, cache=options.cache)
    from benchmarks import simulated

    return simulated.world(short=options.short, cache=options.cache)


def supervised(world: World, options: argparse.Namespace, seed: int) -> Generator:
    """The starting policy of a seed, kept between runs."""
    config = GeneratorConfig(
        levels=world.trie.levels,
        codebook_size=world.trie.codebook_size,
        max_items=world.feedback.histories.shape[1],
        **SHAPE,
    )
    training = TrainingConfig(seed=seed, **{**SUPERVISED, **({"epochs": 5} if options.short else {})})
    key = digest(
        world.name,
        options.short,
        revision(),
        json.dumps(SHAPE),
        repr(training),
        digest(world.windows.items.tobytes().hex(), world.trie.codes.tolist()),
    )
    path = options.cache / f"supervised-{key}.safetensors"
    torch.manual_seed(seed)
    model = Generator(config).to(device())
    if path.exists() and may_keep():
        model.load_state_dict(load_file(path))
    else:
        train_supervised(model, world.trie, world.windows, training)
        if may_keep():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(model.state_dict(), path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
    return model.eval()


def run_seed(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Ranks of the test decisions under each objective, and what the fusions looked like."""
    torch.set_num_threads(1)
    key = digest(options.world, options.short, seed, revision(), json.dumps(POLICY[options.world]))
    kept, kept_facts = options.cache / f"a2po-{key}.npz", options.cache / f"a2po-{key}.json"
    if kept_facts.exists() and may_keep():
        return {"ranks": dict(np.load(kept)), "facts": json.loads(kept_facts.read_text())}
    world = load_world(options)
    start = supervised(world, options, seed)
    groups, advantages, facts = fused_groups(world, start, seed)
    ranks = {"supervised": evaluate(start, world, world.test)}
    arms = {}
    for name, advantage in advantages.items():
        model = improved(start, world, groups, advantage, POLICY[world.name], seed)
        ranks[name] = evaluate(model, world, world.test)
        if name in ARMS:
            arms[name] = partial(recommend, model, world)
        print(f"seed {seed} {name}: NDCG@10 {ndcg(ranks[name], 10).mean():.4f}", flush=True)
    if options.world == "simulator":
        from benchmarks import simulated_ab

        for name, outcomes in simulated_ab.compare(arms, seed, short=options.short).items():
            ranks |= {f"{OUTCOME}{field}:{name}": values for field, values in vars(outcomes).items()}
    if may_keep():
        np.savez(kept, **ranks)
        # Written last: it says that the other file is whole.
        kept_facts.write_text(json.dumps(facts))
    return {"ranks": ranks, "facts": facts}


def recommend(model: Generator, world: World, histories: np.ndarray) -> np.ndarray:
    """[S, 16] ranked items: an arm of the simulated A/B test."""
    return rank_items(model, world.trie, histories, width=GROUP, batch_size=64).items.numpy()


def fused_groups(
    world: World, start: Generator, seed: int
) -> tuple[StoredGroups, dict[str, np.ndarray], dict[str, Any]]:
    """The rollouts, their advantages [N, 16] by objective, and facts of each fusion."""
    every = len(world.feedback.targets)
    # The same prompts for all objectives and seeds.
    rows = np.sort(np.random.default_rng(0).permutation(every)[:PROMPTS])
    histories, targets = world.feedback.histories[rows], world.feedback.targets[rows]
    beams = rank_items(start, world.trie, histories, width=GROUP)
    items = beams.items.numpy()
    rewards = world.business(rows, items)
    everything = np.ones(len(rows), dtype=bool)
    draw = np.random.default_rng(seed)
    sampled = draw.random(len(rows)) < SHARE

    def fused(objective: str, semantic: np.ndarray | None = None, judged: np.ndarray | None = None) -> Advantages:
        return fuse(objective, Groups.of(world.trie, items, rewards, semantic, judged, targets))

    plain = fused("business")
    advantages: dict[str, np.ndarray] = {"business": plain.advantage}
    facts: dict[str, Any] = {
        "groups": len(rows),
        "hits": float((items == targets[:, None]).any(axis=1).mean()),
    }
    for judge in JUDGES[world.name]:
        semantic = world.semantic[judge](rows, items)
        gated = fused("a2po", semantic)
        shuffled = np.take_along_axis(semantic, draw.random(semantic.shape).argsort(axis=1), axis=1)
        growth = np.abs(gated.advantage).mean() / np.abs(plain.advantage).mean()
        advantages |= {
            f"a2po/{judge}": gated.advantage,
            f"a2po p=5%/{judge}": fused("a2po", semantic, sampled).advantage,
            f"scaled control/{judge}": plain.advantage * growth,
            f"permuted control/{judge}": fused("a2po", shuffled).advantage,
            f"a2po_centred/{judge}": fused("a2po_centred", semantic).advantage,
            f"permuted centred control/{judge}": fused("a2po_centred", shuffled).advantage,
            f"adv_sum/{judge}": fused("adv_sum", semantic).advantage,
            f"reward_sum/{judge}": fused("reward_sum", semantic).advantage,
        }
        facts[judge] = vars(fusion_facts(gated, everything)) | {"auc": order_of_hits(items, targets, semantic)}
    facts["policy"] = {"auc": order_of_hits(items, targets, beams.scores.numpy())}
    return StoredGroups(histories, items, beams.log_probs.numpy(), plain.advantage), advantages, facts


def order_of_hits(items: np.ndarray, targets: np.ndarray, scores: np.ndarray) -> float:
    """How often a score puts the target above another candidate of its group; one half is chance."""
    hit = items == targets[:, None]
    rows = hit.any(axis=1)
    chosen, scores, hit = scores[rows][hit[rows]][:, None], scores[rows], hit[rows]
    order = (chosen > scores) + 0.5 * (chosen == scores)
    return float(order[~hit].mean())


def improved(
    start: Generator, world: World, groups: StoredGroups, advantage: np.ndarray, policy: dict[str, Any], seed: int
) -> Generator:
    """A copy of ``start`` trained on the groups; every objective takes the same number of steps."""
    model = copy.deepcopy(start)
    # Groups without business variance give nothing under most objectives; those that use them see them as well.
    stored = StoredGroups(groups.histories, groups.items, groups.log_probs, advantage)
    plain = groups.with_signal()
    steps = policy["epochs"] * int(np.ceil(len(plain.items) / policy["batch_size"]))
    groups_per_step = int(np.ceil(len(stored.with_signal().items) * policy["epochs"] / steps))
    train_stored(model, world.trie, stored, PolicyConfig(seed=seed, **{**policy, "batch_size": groups_per_step}))
    return model


def evaluate(model: Generator, world: World, decisions: Decisions) -> np.ndarray:
    """[N] rank of each target among the best 20 of a beam of 50; inf beyond."""
    items = rank_items(model, world.trie, decisions.histories, width=BEAM, count=LIST, batch_size=32).items.numpy()
    return target_ranks(items, decisions.targets)


def tune(options: argparse.Namespace) -> None:
    world = load_world(options)
    start = supervised(world, options, TUNING_SEED)
    groups, advantages, facts = fused_groups(world, start, TUNING_SEED)
    print(json.dumps(facts, indent=1))
    print(f"supervised: validation NDCG@10 {ndcg(evaluate(start, world, world.validation), 10).mean():.4f}")
    chosen = ["business", *(f"a2po/{judge}" for judge in JUDGES[world.name])]
    for rate, epochs in GRID[world.name]:
        policy = {**POLICY[world.name], "learning_rate": rate, "epochs": epochs}
        found = {}
        for name in chosen:
            model = improved(start, world, groups, advantages[name], policy, TUNING_SEED)
            found[name] = ndcg(evaluate(model, world, world.validation), 10).mean()
        figures = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        print(
            f"learning rate {rate:g}, epochs {epochs}: {figures}; mean {np.mean(list(found.values())):.4f}", flush=True
        )


def report(options: argparse.Namespace, seeds: list[int], runs: list[dict[str, Any]]) -> None:
    world = load_world(options)
    names = [name for name in runs[0]["ranks"] if not name.startswith(OUTCOME)]

    def values(name: str, measure: str) -> np.ndarray:
        """[seeds, users]"""
        return np.stack([per_user(MEASURES[measure](run["ranks"][name], 10), world.test.users) for run in runs])

    def gain(name: str, baseline: str, measure: str) -> Interval:
        return relative_gain(values(name, measure), values(baseline, measure), seed=0)

    claims, rows = [], []
    for judge in JUDGES[world.name]:
        controls = {"business": "business", "business scaled to the mean |A| of a2po": f"scaled control/{judge}"}
        for objective, permuted in (("a2po", "permuted control"), ("a2po_centred", "permuted centred control")):
            baselines = {**controls, "scores permuted within groups": f"{permuted}/{judge}"}
            for measure, goal in PAPER.items():
                found = {words: gain(f"{objective}/{judge}", name, measure) for words, name in baselines.items()}
                sure = all(interval.lower > 0 for interval in found.values())
                for words, interval in found.items():
                    first = words == "business"
                    claims.append(
                        Claim.percent(
                            f"{measure} of {objective}, judge {judge}, over {words}",
                            interval,
                            goal=f">= {100 * goal:.1f} and sure against all three" if first else "> 0",
                            met=sure and interval.value >= goal if first else interval.lower > 0,
                        )
                    )
        for words, name, goal in (
            ("p=5%", f"a2po p=5%/{judge}", 0.991),
            ("p=0, business alone,", "business", None),
        ):
            lost = gain(name, f"a2po/{judge}", "NDCG@10")
            kept = Interval(1 + lost.value, 1 + lost.lower, 1 + lost.upper)
            claims.append(
                Claim.percent(
                    f"NDCG@10 that {words} keeps of p=100%, judge {judge}",
                    kept,
                    goal="" if goal is None else f">= {100 * goal:.1f}, sure",
                    met=None if goal is None else kept.lower >= goal,
                )
            )
    if world.name == "simulator":
        claims += simulated_ab_claims(options, runs)
    for name in names:
        row = [name]
        for measure in MEASURES:
            found = values(name, measure)
            row.append(f"{found.mean():.4f} ± {found.mean(axis=1).std(ddof=1):.4f}")
            against = gain(name, "business", measure)
            row.append(
                ""
                if name == "business"
                else f"{100 * against.value:+.1f}% [{100 * against.lower:+.1f}, {100 * against.upper:+.1f}]"
            )
        rows.append("| " + " | ".join(row) + " |")
    facts = [run["facts"] for run in runs]
    judges = [
        f"| {judge} | {mean(facts, judge, 'auc'):.3f} | {mean(facts, judge, 'agreement_rate'):.3f}"
        f" | {mean(facts, judge, 'mean_gate'):.3f} | {mean(facts, judge, 'advantage_growth'):+.3f} |"
        for judge in JUDGES[world.name]
    ]
    text = "\n".join(
        [
            f"Test decisions of {len(np.unique(world.test.users)):,} users, {len(seeds)} seeds,"
            f" {facts[0]['groups']:,} rollout groups of {GROUP}. ",
            "Mean over seeds ± deviation between seeds; gains over `business` with 95% intervals over seeds and users.",
            "",
            "| objective / judge | HR@10 | over business | NDCG@10 | over business |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
            f"The judges on groups that hold the target ({100 * np.mean([f['hits'] for f in facts]):.1f}% of them); the"
            f" policy's own order has AUC {np.mean([f['policy']['auc'] for f in facts]):.3f}:",
            "",
            "| judge | AUC of the target | agreement | mean gate | growth of mean abs. advantage |",
            "| --- | --- | --- | --- | --- |",
            *judges,
            "",
            ""
            if world.name != "simulator"
            else "Intervals of the simulated A/B are over users alone, the trainings as they are.\n",
            "None of these judges is the paper's LLM. Adam's step does not depend on the scale of the gradient, so the",
            "scaled control can differ from business only through the clipped gradient norm and the weight of the KL",
            "penalty.",
        ]
    )
    details = {"facts": facts, "policy": POLICY[world.name], "supervised": SUPERVISED, "shape": SHAPE}
    name = f"a2po-{world.name}" + ("-short" if options.short else "")
    print(write(name, claims, seeds=seeds, text=text, details=details, folder=options.output).read_text())


def simulated_ab_claims(options: argparse.Namespace, runs: list[dict[str, Any]]) -> list[Claim]:
    """Relative differences of the arms from business, users' outcomes summed over the seeds."""
    from benchmarks import simulated_ab
    from sgrec_core.evaluation.simulated_ab import Outcomes

    def outcomes(run: dict[str, Any], arm: str) -> Outcomes:
        fields = Outcomes.__dataclass_fields__
        return Outcomes(**{field: run["ranks"][f"{OUTCOME}{field}:{arm}"] for field in fields})

    served = [{arm: outcomes(run, arm) for arm in ARMS} for run in runs]
    claims = []
    for arm, found in simulated_ab.differences(served, ARMS[0], short=options.short).items():
        for metric, interval in found.items():
            goal = simulated_ab.GOALS.get(metric)
            sign = -1 if goal is not None and goal < 0 else 1
            sure = min(sign * interval.lower, sign * interval.upper) > 0
            of_paper = goal is not None and arm.startswith("a2po")
            claims.append(
                Claim.percent(
                    f"simulated A/B, {metric}: {arm} against {ARMS[0]}",
                    interval,
                    goal=f"{100 * goal:+.2f} or better, sure" if of_paper and goal is not None else "",
                    met=sure and sign * interval.value >= sign * goal if of_paper and goal is not None else None,
                )
            )
    return claims


def mean(facts: list[dict[str, Any]], judge: str, name: str) -> float:
    return float(np.mean([fact[judge][name] for fact in facts]))


if __name__ == "__main__":
    main()
