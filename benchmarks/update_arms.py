"""What `benchmarks.updates` compares: ways to bring a day's clicks and rewards into a policy that knows neither.

The *champion* is trained on the clicks of days 0 to 2, and its beams on decisions of day 3 are the stored groups. Where
clicks of day 3 are learnt, it is as a night that goes on from a champion does it.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn

from benchmarks import simulated
from benchmarks.report import may_keep, revision
from benchmarks.world import Decisions
from sgrec_core.generator import Generator, GeneratorConfig, ItemTrie, TrainingConfig, rank_items, train_supervised
from sgrec_core.generator.decoding import Beams, score_items
from sgrec_core.generator.packing import Batch, Windows
from sgrec_core.generator.training import GRADIENT_NORM, optimiser_of, packed_loss, rate_at
from sgrec_core.hashing import digest
from sgrec_core.judge.engines.embedding import EmbeddingEngine
from sgrec_core.policy import (
    LOSSES,
    PolicyConfig,
    Prompts,
    RolloutConfig,
    StoredGroups,
    means_of_last_epoch,
    train_on_policy,
    train_stored,
)
from sgrec_core.rewards.advantages import Groups
from sgrec_core.rewards.fusion import fuse
from sgrec_core.settings import PolicySettings, SimulatorSettings, SupervisedSettings

MARKET = simulated.Market(
    SimulatorSettings(seed=11, users=1200, items=300, new_items_per_day=0, requests_per_user=5.0, slate=8),
    first_day="2026-01-02",
    supervised_days=3,
)
"""That of `simulated.MARKET` with two fifths of its users."""
GROUP, PROMPTS = 16, 1024
"""Half of a night's groups, in batches of half a night's size: as many steps."""
NIGHT, POLICY = SupervisedSettings(), PolicySettings()
SHAPE: dict[str, Any] = {"width": 64, "layers": 2, "heads": 4, "dropout": NIGHT.dropout}
BATCH = 32
OBJECTIVES = {
    "business": ("business", None),
    "a2po/noisy_oracle": ("a2po", "noisy_oracle"),
    "a2po/embedding": ("a2po", "embedding"),
}
"""Objective and judge."""


@dataclass(frozen=True)
class Half:
    """Evaluation decisions of half of the users."""

    decisions: Decisions
    ecpm: np.ndarray
    """[N, items] business reward of every item."""


@dataclass(frozen=True)
class Problem:
    """What all arms share: clicks, decisions of day 3 with the rewards of all items, decisions of day 4."""

    trie: ItemTrie
    earlier: Windows
    """The clicks of days 0 to 2."""
    day: Windows
    """Those of day 3."""
    histories: np.ndarray
    """[N, n] of decisions of day 3, N at most `PROMPTS`."""
    targets: np.ndarray
    """[N]"""
    rewards: Mapping[str, np.ndarray]
    """[N, items], by judge; ``business`` is eCPM."""
    halves: Mapping[str, Half]
    """``validation`` and ``test``."""


@lru_cache(maxsize=1)
def load(*, short: bool, cache: Path) -> Problem:
    """The market as a `Problem`; ``cache`` keeps text embeddings and rewards between calls."""
    market = simulated.SHORT if short else MARKET
    world = simulated.world(short=short, cache=cache, market=market)
    log = simulated.read_log(market)
    prompts = log.decisions(market.supervised_days)
    chosen = np.sort(np.random.default_rng(0).permutation(len(prompts))[:PROMPTS])
    halves = dict(zip(("validation", "test"), simulated.evaluated(log), strict=True))
    path = cache / f"update-rewards-{digest(revision(), short)}.npz"
    if path.exists() and may_keep():
        tables = dict(np.load(path))
    else:
        asked = {"business": prompts[chosen], **halves}
        ecpm = simulated.business_reward(log, np.concatenate(list(asked.values())))
        ends = np.cumsum([len(rows) for rows in asked.values()])
        tables = {
            name: table(ecpm, np.arange(end - len(rows), end), world.trie.items)
            for (name, rows), end in zip(asked.items(), ends, strict=True)
        }
        for judge in ("embedding", "noisy_oracle"):
            tables[judge] = table(world.semantic[judge], chosen, world.trie.items)
        if may_keep():
            np.savez(path, **tables)
    return Problem(
        trie=world.trie,
        earlier=log.windows(),
        day=log.windows(feedback=True),
        histories=world.feedback.histories[chosen],
        targets=world.feedback.targets[chosen],
        rewards={name: tables[name] for name in ("business", "embedding", "noisy_oracle")},
        halves={
            "validation": Half(world.validation, tables["validation"]),
            "test": Half(world.test, tables["test"]),
        },
    )


def table(reward: Any, rows: np.ndarray, items: int) -> np.ndarray:
    """[N, items] rewards of every item for ``rows`` [N], 64 rows at a time."""
    every = np.arange(items)
    return np.concatenate(
        [reward(part, np.tile(every, (len(part), 1))) for part in np.split(rows, range(64, len(rows), 64))]
    )


def untrained(problem: Problem, seed: int) -> Generator:
    """The shape of all arms: item head, no memory of transitions."""
    config = GeneratorConfig(
        levels=problem.trie.levels,
        codebook_size=problem.trie.codebook_size,
        max_items=problem.histories.shape[1],
        items=problem.trie.items,
        item_weight=NIGHT.item_weight,
        followers=0,
        memory_weight=0.0,
        **SHAPE,
    )
    torch.manual_seed(seed)
    model = Generator(config)
    model.align(problem.trie)
    return model


def champion(problem: Problem, seed: int, *, short: bool) -> Generator:
    """Trained on days 0 to 2 as a first night trains."""
    model, epochs = untrained(problem, seed), 2 if short else NIGHT.epochs
    train_supervised(model, problem.trie, problem.earlier, training(seed, epochs=epochs, rate=NIGHT.learning_rate))
    return model.eval()


def training(seed: int, *, epochs: int = NIGHT.warm_epochs, rate: float = NIGHT.warm_learning_rate) -> TrainingConfig:
    return TrainingConfig(
        epochs=epochs,
        batch_size=NIGHT.batch_size,
        learning_rate=rate,
        weight_decay=NIGHT.weight_decay,
        label_smoothing=NIGHT.label_smoothing,
        bfloat16=NIGHT.bfloat16,
        seed=seed,
    )


def warm(start: Generator, problem: Problem, seed: int) -> Generator:
    """A copy of ``start`` that has learnt the clicks of day 3."""
    model = copy.deepcopy(start)
    train_supervised(model, problem.trie, problem.day, training(seed))
    return model.eval()


def roll_out(start: Generator, problem: Problem) -> Beams:
    return rank_items(start, problem.trie, problem.histories, width=GROUP, batch_size=64)


def stored_groups(beams: Beams, problem: Problem, objective: str) -> StoredGroups:
    """The groups of a rollout with their advantages under one of `OBJECTIVES`."""
    method, judge = OBJECTIVES[objective]
    items, rows = beams.items.numpy(), np.arange(len(beams.items))[:, None]
    semantic = None if judge is None else problem.rewards[judge][rows, items]
    groups = Groups.of(
        problem.trie,
        items,
        problem.rewards["business"][rows, items],
        semantic,
        targets=problem.targets,
        resolution=resolution(judge),
    )
    return StoredGroups(problem.histories, items, beams.log_probs.numpy(), fuse(method, groups).advantage)


def resolution(judge: str | None) -> float:
    """Deviation up to which a judge's scores are rounding."""
    return EmbeddingEngine.resolution if judge == "embedding" else 1e-8


def policy(seed: int, rate: float) -> PolicyConfig:
    return PolicyConfig(
        epochs=1, batch_size=BATCH, learning_rate=rate, clip=POLICY.clip, beta=POLICY.kl_weight, seed=seed
    )


def on_stored(
    start: Generator, problem: Problem, groups: StoredGroups, config: PolicyConfig
) -> tuple[Generator, dict[str, float]]:
    """One pass over stored groups, as a night does it; what the training was."""
    model = copy.deepcopy(start)
    log = train_stored(model, problem.trie, groups, config)
    share = len(groups.with_signal().items) / len(groups.items)
    return model, means_of_last_epoch(log, 1) | {"signal_share": share}


def on_fresh(
    start: Generator, problem: Problem, objective: str, config: PolicyConfig
) -> tuple[Generator, dict[str, float]]:
    """One update on each batch of fresh groups of the same decisions."""
    method, judge = OBJECTIVES[objective]

    def looked_up(name: str) -> Any:
        return lambda rows, items: problem.rewards[name][rows[:, None], items]

    prompts = Prompts(
        problem.histories,
        looked_up("business"),
        None if judge is None else looked_up(judge),
        targets=problem.targets,
    )
    rollout = RolloutConfig(
        group_size=GROUP, method="beam", updates=1, objective=method, epsilon=1e-8, resolution=resolution(judge)
    )
    model = copy.deepcopy(start)
    log = train_on_policy(model, problem.trie, prompts, config, rollout)
    told = sum(step["groups_with_advantage"] for step in log) / sum(step["groups"] for step in log)
    return model, means_of_last_epoch(log, 1) | {"signal_share": told}


def mixed(
    start: Generator,
    problem: Problem,
    groups: StoredGroups,
    config: PolicyConfig,
    reference: Generator,
    clicks: TrainingConfig | None = None,
) -> tuple[Generator, dict[str, float]]:
    """What a night cannot do: the KL reference is ``reference``; with ``clicks``, next-item loss in the same steps.

    With ``clicks`` the steps, rate and weight decay are those of the training on day 3's clicks, the groups are spread
    over them, and both losses weigh 1. Without, and with the start as reference, it is `on_stored`.
    """
    groups = groups.with_signal()
    model, trie = copy.deepcopy(start).eval(), problem.trie
    histories, items = torch.from_numpy(groups.histories).long(), torch.from_numpy(groups.items).long()
    advantages, free = torch.from_numpy(groups.advantages).float(), ~trie.forced(items)
    old, anchor = (log_probs(each, trie, histories, items) for each in (start, reference))
    windows, draw = problem.day, np.random.default_rng(config.seed)
    batches = math.ceil(len(windows.items) / clicks.batch_size) if clicks else math.ceil(len(items) / config.batch_size)
    epochs = clicks.epochs if clicks else 1
    steps = epochs * batches
    optimiser = optimiser_of(model, 1.0, clicks.weight_decay if clicks else 0.0)
    of_steps = np.array_split(draw.permutation(len(items)), steps)
    log: list[dict[str, float]] = []
    for _ in range(epochs):
        of_batches = np.array_split(draw.permutation(len(windows.items)), batches)
        for some in of_batches:
            step = len(log)
            for group in optimiser.param_groups:
                group["lr"] = (clicks or config).learning_rate * rate_at(step, steps)
            optimiser.zero_grad(set_to_none=True)
            if clicks:
                torch.manual_seed(config.seed * 100_000 + step)
                model.train()
                batch = Batch.of(windows, some, model.device)
                with torch.autocast("cpu", torch.bfloat16, enabled=clicks.bfloat16):
                    loss = packed_loss(model, trie, batch, clicks.label_smoothing)
                (loss / (trie.levels * int(batch.target.sum()))).backward()
                model.eval()
            rows = torch.from_numpy(of_steps[step])
            new = score_items(model, trie, histories[rows], items[rows]).log_probs
            found = LOSSES["clip"](
                new, old[rows], anchor[rows], advantages[rows], clip=config.clip, beta=config.beta, free=free[rows]
            )
            found.loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
            optimiser.step()
            log.append({"clip_fraction": found.clip_fraction.item(), "kl_reference": found.kl_reference.item()})
    return model, means_of_last_epoch(log, 1) | {"signal_share": len(items) / len(problem.histories)}


@torch.no_grad()
def log_probs(model: Generator, trie: ItemTrie, histories: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """[N, G, L] of the codes of items [N, G]."""
    parts = zip(histories.split(BATCH), items.split(BATCH), strict=True)
    return torch.cat([score_items(model, trie, *part).log_probs for part in parts])
