"""Whether each stage of the judge's training improves its metric: simulated users, true aspects as labels, held-out users.

    python -m benchmarks.judge_training [--short] [--seeds 0 1 2 3 4] [--workers 2]

The base model is the tiny untrained one made on the spot, the rubric a short one (`short_rubric.yaml`): this shows that the stages work,
not how good a judge is. Part A, PointAcc (share of the labels that the likeliest level hits): base, after supervised training,
after GRPO. Part B, PairAUC on clicked against passed-over items, scored by the trained part A: uniform weights, weights after
supervised training on their form, after GRPO, and for comparison those of the pipeline's own small network, from the same pairs.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.report import Claim, write
from sgrec_core.aggregator.weights import Pairs, fit, state_features
from sgrec_core.evaluation.metrics import per_user
from sgrec_core.evaluation.significance import relative_gain
from sgrec_core.items import item_text
from sgrec_core.judge import JudgeRequest, Rubric, load_rubric
from sgrec_core.judge.tiny_model import make_tiny_model
from sgrec_core.judge.training import (
    Labelled,
    Preference,
    ScoredPair,
    Tuner,
    correct_points,
    ordered_pairs,
    scored_pairs,
)
from sgrec_core.logs import simulator
from sgrec_core.logs.vocabulary import PLACEMENTS
from sgrec_core.settings import AggregatorSettings, JudgeTrainingSettings, SimulatorSettings

RUBRIC = Path(__file__).with_name("short_rubric.yaml")
TRAINING = {"batch_size": 32, "sft_epochs": 3, "sft_learning_rate": 2e-3, "grpo_epochs": 1, "grpo_learning_rate": 5e-4}
"""For a model of 128 dimensions; chosen on seed 1000."""
SIZES = {"users": 800, "labels": 500, "grpo_labels": 200, "test_labels": 500, "pairs": 300, "test_pairs": 500}
SHORT_SIZES = {"users": 100, "labels": 30, "grpo_labels": 10, "test_labels": 60, "pairs": 20, "test_pairs": 60}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="few labels, two seeds: to see that everything runs")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--workers", type=int, default=2, help="seeds at once, one thread each")
    parser.add_argument("--output", type=Path, help="folder of the results; benchmarks/results by default")
    options = parser.parse_args()
    seeds = options.seeds or ([0, 1] if options.short else [0, 1, 2, 3, 4])
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        runs = list(pool.map(partial(run_seed, SHORT_SIZES if options.short else SIZES), seeds))
    report(options, seeds, runs)


def run_seed(sizes: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    """Points [N * A] and pairs [P] that are right, by stage."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    rubric = load_rubric(True, RUBRIC)
    labels, test_labels, pairs, test_pairs = data(rubric, sizes)
    config = JudgeTrainingSettings(seed=seed, **TRAINING)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        # A tokenizer that knows the words of the training users makes prompts four times as short.
        corpus = [RUBRIC.read_text(), *(str(vars(sample.request)) for sample in labels)]
        base = make_tiny_model(Path(folder) / "tiny", corpus)
        judge = Tuner(base, rubric, config)
        found["points: base"] = correct_points(judge.engine(), test_labels).ravel()
        judge.supervise_labels(labels)
        found["points: supervised"] = correct_points(judge.engine(), test_labels).ravel()
        judge.reinforce_labels(labels[: sizes["grpo_labels"]])
        found["points: GRPO"] = correct_points(judge.engine(), test_labels).ravel()
        scored, test_scored = scored_pairs(judge.engine(), pairs), scored_pairs(judge.engine(), test_pairs)
        states = [pair.state for pair in test_scored]
        found["pairs: uniform"] = ordered_pairs(test_scored)
        aggregator = Tuner(base, rubric, config)
        aggregator.supervise_form_of_weights([pair.state for pair in scored])
        found["pairs: form"] = ordered_pairs(test_scored, aggregator.weights(states))
        aggregator.reinforce_weights(scored)
        found["pairs: GRPO"] = ordered_pairs(test_scored, aggregator.weights(states))
        found["pairs: network"] = ordered_pairs(test_scored, network_weights(rubric, scored, test_scored, seed))
        found["users: points"] = np.repeat([user(sample.request) for sample in test_labels], len(rubric.aspects))
        found["users: pairs"] = np.array([user(state) for state in states])
    print(
        f"seed {seed}: "
        + ", ".join(f"{name} {values.mean():.4f}" for name, values in found.items() if "users" not in name),
        flush=True,
    )
    return found


def data(
    rubric: Rubric, sizes: dict[str, int]
) -> tuple[list[Labelled], list[Labelled], list[Preference], list[Preference]]:
    """Labels and pairs of the first half of the users for training, of the others for the test; the same for all seeds."""
    settings = SimulatorSettings(
        seed=100, users=sizes["users"], items=200, new_items_per_day=0, requests_per_user=4.0, slate=6
    )
    day = simulator.simulate_day(settings, "2026-01-05", "2026-01-05")
    texts = [
        item_text(row["title"], row["brand"], row["category"], None) for row in simulator.catalogue_rows(day.items)
    ]
    profiles = [
        json.dumps({name: value for name, value in row.items() if name != "user_id"})
        for row in simulator.profile_rows(day.users)
    ]
    draw = np.random.default_rng(0)
    labels: dict[bool, list[Labelled]] = {True: [], False: []}
    pairs: dict[bool, list[Preference]] = {True: [], False: []}

    def request(row: int, position: int) -> JudgeRequest:
        # What the user clicked in earlier requests of the day.
        earlier = np.flatnonzero((day.user == day.user[row]) & (day.time < day.time[row]))
        clicked = [item for other in earlier for item in day.shown[other][day.clicked[other]]]
        item = day.shown[row, position]
        return JudgeRequest(
            state_id=f"u{day.user[row]}-r{row}",
            item_id=f"i{item}",
            item_hash="",
            history_texts=tuple(texts[number] for number in clicked),
            profile=profiles[day.user[row]],
            context=json.dumps({"hour": int(day.time[row] // 3_600_000), "placement": PLACEMENTS[day.placement[row]]}),
            item_text=texts[item],
        )

    for row in draw.permutation(len(day.user)):
        training = bool(day.user[row] < sizes["users"] // 2)
        position = int(draw.integers(day.shown.shape[1]))
        labels[training].append(
            Labelled(request=request(row, position), labels=true_labels(rubric, day.aspects[row, position]))
        )
        clicked, passed = np.flatnonzero(day.clicked[row]), np.flatnonzero(~day.clicked[row])
        if len(clicked) and len(passed):
            chosen, other = int(draw.choice(clicked)), int(draw.choice(passed))
            pairs[training].append(Preference(preferred=request(row, chosen), other=request(row, other)))
    return (
        labels[True][: sizes["labels"]],
        labels[False][: sizes["test_labels"]],
        pairs[True][: sizes["pairs"]],
        pairs[False][: sizes["test_pairs"]],
    )


def true_labels(rubric: Rubric, aspects: np.ndarray) -> tuple[str, ...]:
    """The level nearest to each true aspect, which lies in [0, 1], on the aspect's scale."""
    labels = []
    for aspect, share in zip(rubric.aspects, aspects.tolist(), strict=True):
        value = aspect.lowest + (aspect.highest - aspect.lowest) * share
        labels.append(min(aspect.value_of, key=lambda label: abs(aspect.value_of[label] - value)))
    return tuple(labels)


def network_weights(rubric: Rubric, training: list[ScoredPair], test: list[ScoredPair], seed: int) -> np.ndarray:
    """Weights [N, A] of the pipeline's own aggregator, fitted to the same pairs; without texts of the history."""

    def features(pairs: list[ScoredPair]) -> np.ndarray:
        states = pa.table(
            {
                "history": [list(pair.state.history_texts) for pair in pairs],
                "profile": [pair.state.profile for pair in pairs],
                "context": [pair.state.context for pair in pairs],
            }
        )
        return state_features(states, [], None, seed=seed)

    default = AggregatorSettings()
    module, _ = fit(
        Pairs(
            [user(pair.state) for pair in training],
            features(training),
            np.array([pair.preferred for pair in training]),
            np.array([pair.other for pair in training]),
        ),
        rubric.aspect_ids,
        seed=seed,
        held_out_share=0.0,
        epochs=default.epochs,
        learning_rate=default.learning_rate,
        weight_decay=default.weight_decay,
    )
    return module.weights(features(test))


def user(request: JudgeRequest) -> str:
    return request.state_id.partition("-")[0]


STAGES = (
    ("PointAcc of supervised training over the base model", "points: supervised", "points: base", True),
    ("PointAcc of GRPO over supervised training", "points: GRPO", "points: supervised", True),
    (
        "PairAUC of weights after GRPO over those after supervised training on their form",
        "pairs: GRPO",
        "pairs: form",
        True,
    ),
    ("PairAUC of weights after GRPO over uniform weights", "pairs: GRPO", "pairs: uniform", True),
    ("PairAUC of the small network's weights over uniform weights", "pairs: network", "pairs: uniform", False),
    ("PairAUC of weights after GRPO over the small network's", "pairs: GRPO", "pairs: network", False),
)
"""What is compared: name, challenger, baseline, whether a gain is the goal."""


def report(options: argparse.Namespace, seeds: list[int], runs: list[dict[str, Any]]) -> None:
    def values(name: str) -> np.ndarray:
        """[seeds, users]"""
        users = runs[0]["users: " + name.partition(":")[0]]
        return np.stack([per_user(run[name].astype(float), users) for run in runs])

    claims = []
    for words, challenger, baseline, wanted in STAGES:
        gain = relative_gain(values(challenger), values(baseline), seed=0)
        claims.append(Claim.percent(words, gain, goal="> 0" if wanted else "", met=gain.lower > 0 if wanted else None))
    rows = [
        f"| {name} | {np.mean([run[name].mean() for run in runs]):.4f} | {np.std([run[name].mean() for run in runs], ddof=1):.4f} |"
        for name in runs[0]
        if not name.startswith("users")
    ]
    text = "\n".join(
        [
            f"{len(runs[0]['points: base']):,} labels of {len(set(runs[0]['users: points']))} held-out users, "
            f"{len(runs[0]['pairs: GRPO']):,} pairs. Gains are relative, with 95% intervals over seeds and users.",
            "",
            "| metric: stage | mean | deviation between seeds |",
            "| --- | --- | --- |",
            *rows,
        ]
    )
    name = "judge-training" + ("-short" if options.short else "")
    print(
        write(
            name, claims, seeds=seeds, text=text, details={"training": TRAINING, "sizes": SIZES}, folder=options.output
        ).read_text()
    )


if __name__ == "__main__":
    main()
