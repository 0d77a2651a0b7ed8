"""Whether each stage of the judge's training improves its metric: simulated users, true labels, held-out users.

    python -m benchmarks.judge_training [--short] [--seeds 0 1 2 3 4] [--workers 2]

The base model is a tiny one made on the spot, which has read prompts of training users answered at random: it knows
their words and that a letter answers a question, not which; rubric and texts are as short as can be
(`tiny_rubric.yaml`). This shows that the stages work, not how good a judge is: so small a model learns which level of
an aspect is the commonest, and little of what a request says.

Part A: PointAcc (share of the labels that the likeliest level hits) and PairAUC (of two items shown together the one
that the user truly prefers, aspects weighed alike) of the base, after supervised training on a few labels, after GRPO
on more labels that the supervised stage has not seen. For comparison: always the commonest level, and supervised
training on all these labels. Each seed draws labels of its own.

Part B, apart from A: share of the answers that have the form of weights, of the base and after supervised training on
it; then PairAUC on the same pairs where the aspects of the items are the true ones. Uniform weights, weights after
supervised training on their form, after GRPO, and for comparison those of the pipeline's own small network from the
same pairs, and each user's true weights. Training pairs are those on which weights matter: neither item is better in
every aspect.
"""

import argparse
import json
import multiprocessing
import os
import random
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.report import Claim, write
from sgrec_core import simulator
from sgrec_core.aggregator.features import state_features
from sgrec_core.aggregator.network import Pairs, fit
from sgrec_core.evaluation.metrics import per_user
from sgrec_core.evaluation.significance import paired_bootstrap, relative_gain
from sgrec_core.judge.engines.tiny_model import make_tiny_model
from sgrec_core.judge.prompt import label_question, system_message, user_message
from sgrec_core.judge.request import JudgeRequest
from sgrec_core.judge.rubric import Rubric, load_rubric
from sgrec_core.judge.training.labels import nearest_label
from sgrec_core.judge.training.measures import correct_points, or_uniform, ordered_pairs
from sgrec_core.judge.training.samples import Labelled, Preference, ScoredPair, scored_pairs
from sgrec_core.judge.training.tuner import Tuner, fine_tune
from sgrec_core.settings import AggregatorSettings, JudgeTrainingSettings, SimulatorSettings
from sgrec_core.simulator.vocabulary import CATEGORIES, OCCASIONS

WORLD = 100
"""Seed of the simulated users; settings were chosen in world 200."""
RUBRIC = Path(__file__).with_name("tiny_rubric.yaml")
BASE = {"sft_epochs": 1, "sft_batch_size": 8, "sft_learning_rate": 3e-3}
LABELS = {
    "sft_batch_size": 8,
    "sft_epochs": 1,
    "sft_learning_rate": 2e-3,
    "grpo_batch_size": 64,
    "group_size": 8,
    "grpo_learning_rate": 1e-3,
    "kl_weight": 0.0,
}
WEIGHTS = {
    "sft_batch_size": 8,
    "sft_epochs": 4,
    "sft_learning_rate": 3e-3,
    "grpo_batch_size": 256,
    "grpo_learning_rate": 1e-3,
    "kl_weight": 0.0,
}
"""For a model of 128 dimensions."""
SIZES = {
    "users": 4000,
    "read": 5500,
    "labels": 24,
    "grpo_labels": 300,
    "test_labels": 500,
    "states": 1500,
    "pairs": 1500,
    "test_pairs": 1000,
    "judged_pairs": 200,
}
"""``judged_pairs``: of the test pairs, those whose items the trained judge scores."""
SHORT_SIZES = {
    "users": 200,
    "read": 30,
    "labels": 30,
    "grpo_labels": 10,
    "test_labels": 60,
    "states": 30,
    "pairs": 20,
    "test_pairs": 60,
    "judged_pairs": 30,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="few labels, two seeds: to see that everything runs")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--workers", type=int, default=2, help="seeds at once, one thread each")
    parser.add_argument("--output", type=Path, help="folder of the results; benchmarks/results by default")
    options = parser.parse_args()
    seeds = options.seeds or ([0, 1] if options.short else [0, 1, 2, 3, 4])
    sizes = sizes_of(options)
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool,
    ):
        base = pool.submit(make_base, sizes, Path(folder)).result()
        runs = list(pool.map(partial(run_seed, sizes, base), seeds))
    report(options, seeds, runs)


def sizes_of(options: argparse.Namespace) -> dict[str, int]:
    return SHORT_SIZES if options.short else SIZES


def make_base(sizes: dict[str, int], folder: Path) -> Path:
    """The base model of all seeds: the tiny model, trained on prompts of training users answered at random."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rubric = load_rubric(True, RUBRIC)
    system = {"role": "system", "content": system_message(rubric)}
    draw = random.Random(0)
    rows = [
        {
            "prompt": [
                system,
                {"role": "user", "content": user_message(rubric, sample.request, label_question(rubric, aspect))},
            ],
            "completion": [{"role": "assistant", "content": draw.choice(list(aspect.value_of))}],
        }
        for sample in simulated(rubric, sizes).read
        for aspect in rubric.aspects
    ]
    # A tokenizer that knows the words of the prompts makes them many times as short.
    tiny = make_tiny_model(folder / "tiny", [message["content"] for row in rows for message in row["prompt"]])
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    # The tiny model's own random weights are made to give different prompts different answers, not to be trained.
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny))
    fine_tune(model, tokenizer, rows, JudgeTrainingSettings(seed=0, **BASE), completions_only=False)
    base = folder / "base"
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    return base


def run_seed(sizes: dict[str, int], base: Path, seed: int) -> dict[str, np.ndarray]:
    """Points [N * A] and pairs [P] that are right, by stage."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    rubric = load_rubric(True, RUBRIC)
    world = simulated(rubric, sizes)
    found: dict[str, np.ndarray] = {}
    labels = random.Random(seed).sample(world.labels, sizes["labels"] + sizes["grpo_labels"])
    first, second = labels[: sizes["labels"]], labels[sizes["labels"] :]

    def measure(stage: str, tuner: Tuner) -> None:
        found[f"points: {stage}"] = correct_points(tuner.engine(), world.test_labels).ravel()
        found[f"pairs, judged: {stage}"] = ordered_pairs(
            scored_pairs(tuner.engine(), world.test_pairs[: sizes["judged_pairs"]])
        )

    judge = Tuner(base, rubric, JudgeTrainingSettings(seed=seed, **LABELS))
    measure("base", judge)
    judge.supervise_labels(first)
    measure("supervised", judge)
    judge.reinforce_labels(second)
    measure("GRPO", judge)
    alone = Tuner(base, rubric, JudgeTrainingSettings(seed=seed, **LABELS))
    alone.supervise_labels(labels)
    measure("supervised on all labels", alone)
    found["points: commonest"] = commonest_points(labels, world.test_labels).ravel()

    aggregator = Tuner(base, rubric, JudgeTrainingSettings(seed=seed, **WEIGHTS))
    states = [pair.state for pair in world.true_test_pairs]
    found["pairs, true: uniform"] = ordered_pairs(world.true_test_pairs)
    found["form: base"] = in_form(aggregator.answered_weights(states))
    aggregator.supervise_form_of_weights(world.states)
    answered = aggregator.answered_weights(states)
    found["form: supervised"] = in_form(answered)
    found["pairs, true: form"] = ordered_pairs(world.true_test_pairs, or_uniform(answered))
    aggregator.reinforce_weights(world.true_pairs)
    found["pairs, true: GRPO"] = ordered_pairs(world.true_test_pairs, aggregator.weights(states))
    network = network_weights(rubric, world.true_pairs, world.true_test_pairs, seed)
    found["pairs, true: network"] = ordered_pairs(world.true_test_pairs, network)
    found["pairs, true: true weights"] = ordered_pairs(world.true_test_pairs, world.test_weights)
    found["users: points"] = np.repeat([user(sample.request) for sample in world.test_labels], len(rubric.aspects))
    found["users: form"] = found["users: pairs, true"] = np.array([user(state) for state in states])
    found["users: pairs, judged"] = found["users: pairs, true"][: sizes["judged_pairs"]]
    print(
        f"seed {seed}: "
        + ", ".join(f"{name} {values.mean():.4f}" for name, values in found.items() if "users" not in name),
        flush=True,
    )
    return found


def commonest_points(training: list[Labelled], test: list[Labelled]) -> np.ndarray:
    """Bool [N, A]: whether the level that is the commonest in ``training`` is the true one of ``test``."""
    levels = np.array([sample.labels for sample in training])
    commonest = np.array([Counter(column).most_common(1)[0][0] for column in levels.T.tolist()])
    return np.array([sample.labels for sample in test]) == commonest


def in_form(answered: np.ndarray) -> np.ndarray:
    """Which of the weights [N, A] of `Tuner.answered_weights` there are: bool [N]."""
    return ~np.isnan(answered).any(axis=1)


@dataclass(frozen=True, kw_only=True)
class World:
    """Labels and pairs of the first half of the simulated users for training, of the others for the test."""

    labels: list[Labelled]
    test_labels: list[Labelled]
    read: list[Labelled]
    """Of training users, apart from ``labels``: for the base model."""
    states: list[JudgeRequest]
    test_pairs: list[Preference]
    true_pairs: list[ScoredPair]
    """With the items' true aspects."""
    true_test_pairs: list[ScoredPair]
    """The same as ``test_pairs``."""
    test_weights: np.ndarray
    """True weights of their users."""


def simulated(rubric: Rubric, sizes: dict[str, int]) -> World:
    """The same for all seeds."""
    settings = SimulatorSettings(
        seed=WORLD, users=sizes["users"], items=200, new_items_per_day=0, requests_per_user=4.0, slate=6
    )
    day = simulator.simulate_day(settings, "2026-01-05", "2026-01-05")
    # What an aspect follows most, and little else: the shorter the prompts, the smaller a model that can learn them.
    categories, occasions = [name.split(",")[1] for name in CATEGORIES], list(OCCASIONS)
    texts = [
        f"{categories[category]} for {occasions[occasion]}"
        for category, occasion in zip(day.items.category, day.items.occasion, strict=True)
    ]

    def favourites(row: dict[str, object]) -> str:
        return ", ".join(name.split(",")[1] for name in str(row["favourite_categories"]).split("; "))

    profiles = [
        json.dumps({"likes": favourites(row), "shopping": row["shopping"]}) for row in simulator.profile_rows(day.users)
    ]
    lowest = np.array([aspect.lowest for aspect in rubric.aspects])
    highest = np.array([aspect.highest for aspect in rubric.aspects])
    draw = np.random.default_rng(0)
    labels: dict[bool, list[Labelled]] = {True: [], False: []}
    pairs: dict[bool, list[tuple[Preference, ScoredPair]]] = {True: [], False: []}

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
            context=json.dumps({"hour": int(day.time[row] // 3_600_000)}),
            item_text=texts[item],
        )

    for row in draw.permutation(len(day.user)):
        training = bool(day.user[row] < sizes["users"] // 2)
        aspects = day.aspects[row].astype(float)
        one, two = draw.choice(day.shown.shape[1], size=2, replace=False).tolist()
        labels[training].append(
            Labelled(
                request=request(row, one),
                labels=tuple(map(nearest_label, rubric.aspects, aspects[one].tolist())),
            )
        )
        liking = aspects @ day.users.weights[day.user[row]]
        chosen, other = (one, two) if liking[one] > liking[two] else (two, one)
        scores = lowest + (highest - lowest) * aspects
        if training and not (scores[chosen] < scores[other]).any():
            continue
        preference = Preference(preferred=request(row, chosen), other=request(row, other))
        scored = ScoredPair(state=preference.preferred, preferred=tuple(scores[chosen]), other=tuple(scores[other]))
        pairs[training].append((preference, scored))
    test_pairs = pairs[False][: sizes["test_pairs"]]
    test_users = [int(user(preference.preferred)[1:]) for preference, _ in test_pairs]
    return World(
        labels=labels[True][: -sizes["read"]],
        read=labels[True][-sizes["read"] :],
        test_labels=labels[False][: sizes["test_labels"]],
        states=[scored.state for _, scored in pairs[True][: sizes["states"]]],
        test_pairs=[preference for preference, _ in test_pairs],
        true_pairs=[scored for _, scored in pairs[True][: sizes["pairs"]]],
        true_test_pairs=[scored for _, scored in test_pairs],
        test_weights=day.users.weights[test_users],
    )


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

    module, _ = fit(
        Pairs(
            [user(pair.state) for pair in training],
            features(training),
            np.array([pair.preferred for pair in training]),
            np.array([pair.other for pair in training]),
        ),
        rubric.aspect_ids,
        AggregatorSettings(seed=seed, held_out_share=0.0),
    )
    return module.weights(features(test))


def user(request: JudgeRequest) -> str:
    return request.state_id.partition("-")[0]


STAGES = (
    ("PointAcc of supervised training over the base model", "points: supervised", "points: base", True),
    ("PointAcc of GRPO over supervised training", "points: GRPO", "points: supervised", True),
    ("PointAcc of GRPO over always the commonest level", "points: GRPO", "points: commonest", False),
    (
        "PointAcc of GRPO over supervised training on the labels of both stages",
        "points: GRPO",
        "points: supervised on all labels",
        False,
    ),
    (
        "PairAUC of the judge after supervised training over the base model",
        "pairs, judged: supervised",
        "pairs, judged: base",
        True,
    ),
    (
        "PairAUC of the judge after GRPO over supervised training",
        "pairs, judged: GRPO",
        "pairs, judged: supervised",
        False,
    ),
    (
        "PairAUC of weights after GRPO over those after supervised training on their form",
        "pairs, true: GRPO",
        "pairs, true: form",
        True,
    ),
    ("PairAUC of weights after GRPO over uniform weights", "pairs, true: GRPO", "pairs, true: uniform", True),
    (
        "PairAUC of the small network's weights over uniform weights",
        "pairs, true: network",
        "pairs, true: uniform",
        False,
    ),
    ("PairAUC of weights after GRPO over the small network's", "pairs, true: GRPO", "pairs, true: network", False),
    (
        "PairAUC of the users' true weights over uniform weights",
        "pairs, true: true weights",
        "pairs, true: uniform",
        False,
    ),
)
"""What is compared: name, challenger, baseline, whether a gain is the goal."""


def report(options: argparse.Namespace, seeds: list[int], runs: list[dict[str, Any]]) -> None:
    def values(name: str) -> np.ndarray:
        """[seeds, users]"""
        users = runs[0]["users: " + name.partition(":")[0]]
        return np.stack([per_user(run[name].astype(float), users) for run in runs])

    valid = {stage: values(f"form: {stage}").mean(axis=0) for stage in ("base", "supervised")}
    learnt = paired_bootstrap(valid["supervised"], valid["base"], seed=0)
    claims = [
        Claim.percent(
            "share of weights in their form after supervised training, above that of the base model",
            learnt,
            goal="> 0",
            met=learnt.lower > 0,
        )
    ]
    for words, challenger, baseline, wanted in STAGES:
        gain = relative_gain(values(challenger), values(baseline), seed=0)
        claims.append(Claim.percent(words, gain, goal="> 0" if wanted else "", met=gain.lower > 0 if wanted else None))
    rows = [
        f"| {name} | {np.mean([run[name].mean() for run in runs]):.4f}"
        f" | {np.std([run[name].mean() for run in runs], ddof=1):.4f} |"
        for name in runs[0]
        if not name.startswith("users")
    ]
    text = "\n".join(
        [
            f"{len(runs[0]['points: base']):,} labels of {len(set(runs[0]['users: points']))} held-out users, "
            f"{len(runs[0]['pairs, true: GRPO']):,} pairs. Gains are relative, "
            "with 95% intervals over seeds and users; that of the form is a difference, with an interval over users.",
            "",
            "| metric: stage | mean | deviation between seeds |",
            "| --- | --- | --- |",
            *rows,
        ]
    )
    name = "judge-training" + ("-short" if options.short else "")
    print(
        write(
            name,
            claims,
            seeds=seeds,
            text=text,
            details={"labels": LABELS, "weights": WEIGHTS, "sizes": sizes_of(options)},
            folder=options.output,
        ).read_text()
    )


if __name__ == "__main__":
    main()
