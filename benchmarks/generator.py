"""The generator against SASRec, leave-one-out, whole catalogue, whole test set.

    python -m benchmarks.generator --set scientific [--short] [--data ../shared/data] [--seeds 0 1 2] [--tune]
    python -m benchmarks.generator --set beauty

All read the same training windows and the same histories of at most 20 items, in one run. SASRec stops at its best
epoch on validation, the generator's epochs are fixed. Semantic ids are those that a night makes of texts where the set
has texts (Scientific), else those that come with it (Beauty); SASRec reads no text.

``--tune`` (seed 1000) is for choosing dropout, epochs and weights, for SASRec dropout and width; learning rates and
weight decay are the usual ones. It leaves the test items out and plays the same game one item earlier: what is
predicted is the validation item, and what is before the item before it is trained on. A history then ends, as in the
test, with an item that this user was never trained on.

Where there is a GPU it is used.

Two rows say where a difference comes from: the generator without its memory of transitions, and the memory alone. What
a seed gave is kept under ``--cache`` for the git revision that made it: a run that was stopped goes on.
"""

import argparse
import itertools
import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import data, sasrec
from benchmarks.report import Claim, may_keep, revision, write
from benchmarks.sasrec import SASRecConfig
from sgrec_core.evaluation.metrics import CUTOFFS, coverage, gini, hit_rate, ndcg, target_ranks
from sgrec_core.evaluation.significance import relative_gain
from sgrec_core.generator import Generator, GeneratorConfig, TrainingConfig, rank_items, train_supervised
from sgrec_core.generator.device import device
from sgrec_core.hashing import digest

SHAPE = {"width": 128, "layers": 2, "heads": 4}
TRAINING = {"batch_size": 128, "learning_rate": 1e-3, "weight_decay": 0.1, "label_smoothing": 0.0, "bfloat16": True}
GENERATOR = {"epochs": 20, "dropout": 0.2, "item_weight": 0.8, "followers": 64, "memory_weight": 0.7}
"""Those of a night."""
WITHOUT_MEMORY = {"item_weight": 0.67, "memory_weight": 0.0}
"""Chosen by itself."""
NO_MEMORY, MEMORY_ALONE = "generator without memory (same weights)", "memory alone"
_SASREC = SASRecConfig(
    width=128,
    layers=2,
    heads=2,
    dropout=0.2,
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
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "sgrec" / "benchmarks")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--workers", type=int, default=2, help="trainings at once, one thread each")
    parser.add_argument("--output", type=Path, help="folder of the results; benchmarks/results by default")
    options = parser.parse_args()
    if options.tune:
        tune(options)
        return
    seeds = options.seeds or ([0, 1] if options.short else [0, 1, 2])
    options.cache.mkdir(parents=True, exist_ok=True)
    revision()  # of the code that runs, whatever is committed before it ends
    runs: dict[int, dict[str, np.ndarray]] = {seed: {} for seed in seeds}
    tasks = list(itertools.product(seeds, (run_sasrec, run_generator)))
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        for (seed, _), lists in zip(
            tasks, pool.map(partial(run_task, options), *zip(*tasks, strict=True)), strict=True
        ):
            runs[seed] |= lists
    report(options, seeds, list(runs.values()))


def load(options: argparse.Namespace) -> data.LeaveOneOut:
    source = data.load(options.set, options.data)
    if options.set == "scientific":
        return data.with_text_codes(source, data.text_embeddings(source, options.cache))
    return source


def train_generator(source: data.LeaveOneOut, changes: dict[str, Any], seed: int) -> Generator:
    settings = {**GENERATOR, **changes}
    torch.manual_seed(seed)
    generator = Generator(
        GeneratorConfig(
            levels=source.codes.shape[1],
            codebook_size=source.codebook_size,
            max_items=data.MAX_HISTORY,
            dropout=settings["dropout"],
            items=len(source.codes),
            item_weight=settings["item_weight"],
            followers=settings["followers"],
            memory_weight=settings["memory_weight"],
            **SHAPE,
        )
    ).to(device())
    generator.align(source.trie)
    windows = source.windows()
    generator.remember(windows)
    train_supervised(generator, source.trie, windows, TrainingConfig(epochs=settings["epochs"], seed=seed, **TRAINING))
    return generator


def ranked(generator: Generator, source: data.LeaveOneOut, histories: np.ndarray, **weights: float) -> np.ndarray:
    """[N, 20] by a beam of 50, with ``weights`` in place of the model's."""
    return rank_items(generator.reweighted(**weights), source.trie, histories, width=50, count=20).items.numpy()


Task = Callable[[argparse.Namespace, data.LeaveOneOut, int], dict[str, np.ndarray]]


def run_task(options: argparse.Namespace, seed: int, task: Task) -> dict[str, np.ndarray]:
    """Ranked test items [N, 20] by name of the model; kept when the code has a revision."""
    torch.set_num_threads(1)
    settings = [GENERATOR, WITHOUT_MEMORY, SHAPE, TRAINING, vars(SASREC[options.set])]
    source = load(options)
    contents = digest([sequence.tolist() for sequence in source.sequences], source.codes.tolist())
    key = digest(task.__name__, options.set, options.short, seed, revision(), json.dumps(settings), contents)
    kept = options.cache / f"generator-{key}.npz"
    if kept.exists() and may_keep():
        return dict(np.load(kept))
    lists = task(options, source, seed)
    for name, items in lists.items():
        print(f"seed {seed} {name}: {len(items)} users ranked", flush=True)
    if may_keep():
        part = kept.with_suffix(f".{os.getpid()}.npz")
        np.savez(part, **lists)
        part.rename(kept)
    return lists


def run_sasrec(options: argparse.Namespace, source: data.LeaveOneOut, seed: int) -> dict[str, np.ndarray]:
    config = replace(SASREC[options.set], epochs=10) if options.short else SASREC[options.set]
    model, _ = sasrec.train(len(source.codes), source.windows(), source.held_out("validation"), config, seed)
    return {"SASRec": sasrec.rank(model, source.held_out("test")[0])}


def run_generator(options: argparse.Namespace, source: data.LeaveOneOut, seed: int) -> dict[str, np.ndarray]:
    generator = train_generator(source, {"epochs": 3} if options.short else {}, seed)
    histories, _ = source.held_out("test")
    return {
        "generator": ranked(generator, source, histories),
        NO_MEMORY: ranked(generator, source, histories, **WITHOUT_MEMORY),
        MEMORY_ALONE: remembered(generator, histories),
    }


@torch.inference_mode()
def remembered(generator: Generator, histories: np.ndarray) -> np.ndarray:
    """[N, 20] by the memory of transitions and nothing else."""
    assert generator.memory is not None
    parts = torch.as_tensor(histories, dtype=torch.int64, device=generator.device).split(512)
    return torch.cat([generator.memory.log_probs(part).topk(20, dim=1).indices for part in parts]).cpu().numpy()


def tune(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    source = load(options)
    source = replace(source, sequences=[sequence[:-1] for sequence in source.sequences if len(sequence) > 3])
    histories, targets = source.held_out("test")

    def found(items: np.ndarray) -> str:
        ranks = target_ranks(items, targets)
        return f"validation NDCG@10 {ndcg(ranks, 10).mean():.4f}, HR@10 {hit_rate(ranks, 10).mean():.4f}"

    for dropout, width in itertools.product((0.2, 0.5), (64, 128)):
        config = replace(SASREC[options.set], dropout=dropout, width=width)
        stop_by = source.held_out("validation")
        baseline, _ = sasrec.train(len(source.codes), source.windows(), stop_by, config, TUNING_SEED)
        print(f"SASRec, dropout {dropout}, width {width}: {found(sasrec.rank(baseline, histories))}", flush=True)
    for dropout, epochs in itertools.product((0.2, 0.3), (10, 20, 30)):
        changes = {"dropout": dropout, "epochs": epochs}
        generator = train_generator(source, changes, TUNING_SEED)
        for item, remembering in itertools.product((0.5, 0.67, 0.8, 0.9), (0.0, 0.5, 0.7, 0.85, 1.0)):
            weights = {"item_weight": item, "memory_weight": remembering}
            figures = found(ranked(generator, source, histories, **weights))
            print(f"generator, {changes}, {weights}: {figures}", flush=True)


def report(options: argparse.Namespace, seeds: list[int], runs: list[dict[str, np.ndarray]]) -> None:
    source = load(options)
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
        for other in (NO_MEMORY, MEMORY_ALONE):
            gain = relative_gain(ours, measure(ranks[other], 10), seed=0)
            claims.append(Claim.percent(f"{label}@10 of the generator over {other}, {options.set}", gain))
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
            f"{len(targets):,} test users, {len(source.codes):,} items, {len(seeds)} seeds; means over seeds, history"
            " not removed.",
            "Intervals: 95%, users resampled, with a Student's t interval over seeds added in squares.",
            "",
            *table,
        ]
    )
    details = {
        "generator": GENERATOR,
        "without memory": WITHOUT_MEMORY,
        "shape": SHAPE,
        "training": TRAINING,
        "sasrec": vars(SASREC[options.set]),
    }
    name = f"generator-{options.set}" + ("-short" if options.short else "")
    print(write(name, claims, seeds=seeds, text=text, details=details, folder=options.output).read_text())


if __name__ == "__main__":
    main()
