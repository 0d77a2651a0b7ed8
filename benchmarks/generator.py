"""The generator against SASRec, leave-one-out, whole catalogue, whole test set.

    python -m benchmarks.generator --set scientific [--short] [--data ../shared/data] [--seeds 0 1 2] [--tune]
    python -m benchmarks.generator --set beauty

Both read the same training windows and the same histories of at most 20 items, in one run. SASRec stops at its best
epoch on validation, the generator's epochs are fixed. Width, dropout and epochs are to be chosen on validation with
``--tune`` (seed 1000); learning rates and weight decay are the usual ones. Semantic ids are those that come with the set.
"""

import argparse
import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import data, sasrec
from benchmarks.report import Claim, write
from benchmarks.sasrec import SASRecConfig
from sgrec_core.evaluation.metrics import CUTOFFS, coverage, gini, hit_rate, ndcg, target_ranks
from sgrec_core.evaluation.significance import relative_gain
from sgrec_core.generator import Generator, GeneratorConfig, TrainingConfig, rank_items, train_supervised

SHAPE = {"width": 128, "layers": 2, "heads": 4}
TRAINING = {"batch_size": 128, "learning_rate": 1e-3, "weight_decay": 0.1, "label_smoothing": 0.0, "bfloat16": True}
GENERATOR: dict[str, dict[str, Any]] = {
    "scientific": {"epochs": 30, "dropout": 0.2},
    "beauty": {"epochs": 30, "dropout": 0.2},
}
_SASREC = SASRecConfig(
    width=128,
    layers=2,
    heads=2,
    dropout=0.5,
    learning_rate=1e-3,
    weight_decay=0.1,
    epochs=100,
    batch_size=256,
    check_every=5,
)
SASREC = {"scientific": _SASREC, "beauty": replace(_SASREC, epochs=60)}
PUBLISHED = {"beauty": {"SASRec": {"HR@10": 0.0605, "NDCG@10": 0.0318}, "TIGER": {"HR@10": 0.0648, "NDCG@10": 0.0384}}}
GOAL = 0.10
TUNING_SEED = 1000
MEASURES = {"HR": hit_rate, "NDCG": ndcg}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=["scientific", "beauty"], required=True)
    parser.add_argument("--short", action="store_true", help="few epochs, two seeds: a check in minutes")
    parser.add_argument("--tune", action="store_true", help="print validation figures; no test item is read")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the public sets")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--workers", type=int, default=2, help="seeds at once, one thread each")
    parser.add_argument("--output", type=Path, help="folder of the results; benchmarks/results by default")
    options = parser.parse_args()
    if options.tune:
        tune(options)
        return
    seeds = options.seeds or ([0, 1] if options.short else [0, 1, 2])
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        runs = list(pool.map(partial(run_seed, options), seeds))
    report(options, seeds, runs)


def train_generator(source: data.LeaveOneOut, changes: dict[str, Any], seed: int) -> Generator:
    settings = {**GENERATOR[source.name], **changes}
    torch.manual_seed(seed)
    model = Generator(
        GeneratorConfig(
            levels=source.codes.shape[1],
            codebook_size=source.codebook_size,
            max_items=data.MAX_HISTORY,
            dropout=settings["dropout"],
            **SHAPE,
        )
    )
    train_supervised(
        model, source.trie, source.windows(), TrainingConfig(epochs=settings["epochs"], seed=seed, **TRAINING)
    )
    return model


def run_seed(options: argparse.Namespace, seed: int) -> dict[str, np.ndarray]:
    """Ranked test items [N, 20] of both."""
    torch.set_num_threads(1)
    source = data.load(options.set, options.data)
    config = replace(SASREC[options.set], epochs=10) if options.short else SASREC[options.set]
    baseline, _ = sasrec.train(len(source.codes), source.windows(), source.held_out("validation"), config, seed)
    model = train_generator(source, {"epochs": 3} if options.short else {}, seed)
    histories, _ = source.held_out("test")
    return {
        "SASRec": sasrec.rank(baseline, histories),
        "generator": rank_items(model, source.trie, histories, width=50, count=20).items.numpy(),
    }


def tune(options: argparse.Namespace) -> None:
    source = data.load(options.set, options.data)
    histories, targets = source.held_out("validation")
    for dropout, width in itertools.product((0.2, 0.5), (64, 128)):
        config = replace(SASREC[options.set], dropout=dropout, width=width)
        _, best = sasrec.train(len(source.codes), source.windows(), (histories, targets), config, TUNING_SEED)
        print(f"SASRec, dropout {dropout}, width {width}: validation NDCG@10 {best:.4f}", flush=True)
    for dropout, epochs in itertools.product((0.1, 0.2, 0.3), (20, 40)):
        model = train_generator(source, {"dropout": dropout, "epochs": epochs}, TUNING_SEED)
        items = rank_items(model, source.trie, histories, width=50, count=20).items.numpy()
        found = ndcg(target_ranks(items, targets), 10).mean()
        print(f"generator, dropout {dropout}, epochs {epochs}: validation NDCG@10 {found:.4f}", flush=True)


def report(options: argparse.Namespace, seeds: list[int], runs: list[dict[str, np.ndarray]]) -> None:
    source = data.load(options.set, options.data)
    _, targets = source.held_out("test")
    ranks = {name: np.stack([target_ranks(run[name], targets) for run in runs]) for name in runs[0]}
    table = [
        "| model | "
        + " | ".join(f"{name}@{cutoff}" for name in MEASURES for cutoff in CUTOFFS)
        + " | coverage@10 | Gini@10 |"
    ]
    table.append("| --- |" + " --- |" * (len(MEASURES) * len(CUTOFFS) + 2))
    for name, of_model in ranks.items():
        figures = [f"{measure(of_model, cutoff).mean():.4f}" for measure in MEASURES.values() for cutoff in CUTOFFS]
        spread = [
            np.mean([coverage(run[name], len(source.codes), 10) for run in runs]),
            np.mean([gini(run[name], len(source.codes), 10) for run in runs]),
        ]
        table.append("| " + " | ".join([name, *figures, *(f"{value:.3f}" for value in spread)]) + " |")
    claims = []
    for label, measure in MEASURES.items():
        ours, theirs = measure(ranks["generator"], 10), measure(ranks["SASRec"], 10)
        gain = relative_gain(ours, theirs, seed=0)
        wanted = label == "NDCG"
        claims.append(
            Claim.percent(
                f"{label}@10 of the generator over SASRec, {options.set}",
                gain,
                goal=f">= {100 * GOAL:.0f}" if wanted else "",
                met=gain.value >= GOAL and gain.lower > 0 if wanted else None,
            )
        )
        for name, figures_of in PUBLISHED.get(options.set, {}).items():
            published = figures_of[f"{label}@10"]
            claims.append(
                Claim(
                    name=f"{label}@10 of the generator over published {name}, {options.set}",
                    value=100 * (float(ours.mean()) / published - 1),
                    interval=None,
                    unit="%",
                    goal=f">= {100 * GOAL:.0f}" if wanted else "",
                    met=float(ours.mean()) >= (1 + GOAL) * published if wanted else None,
                )
            )
    text = "\n".join(
        [
            f"{len(targets):,} test users, {len(source.codes):,} items, {len(seeds)} seeds; means over seeds, history not removed.",
            "Intervals: 95%, seeds and users resampled together.",
            "",
            *table,
        ]
    )
    details = {
        "generator": GENERATOR[options.set],
        "shape": SHAPE,
        "training": TRAINING,
        "sasrec": vars(SASREC[options.set]),
    }
    name = f"generator-{options.set}" + ("-short" if options.short else "")
    print(write(name, claims, seeds=seeds, text=text, details=details, folder=options.output).read_text())


if __name__ == "__main__":
    main()
