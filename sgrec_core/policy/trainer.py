"""Policy training, from stored rollout groups or from fresh ones.

What was left out, and why: no value network (the group is the baseline); no dropout (old and new policy must be the
same function at the start); no normalisation by a candidate's length (see `clipped_policy_loss`). `train_stored` makes
no rollouts: groups come from the tables, whoever rolled them out, so a night can be retrained from its tables alone.
`train_on_policy` rolls out anew at every step and has the groups rewarded on the spot. In both, codes that had no
alternative are left out of loss and statistics.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from sgrec_core.generator.decoding import Beams, beam_search, sample_items, score_items
from sgrec_core.generator.model import Generator
from sgrec_core.generator.training import GRADIENT_NORM, optimiser_of, rate_at
from sgrec_core.generator.trie import ItemTrie
from sgrec_core.policy.losses import LOSSES, mean_over_free, truncated_weights
from sgrec_core.rewards.advantages import Groups, method_of
from sgrec_core.rewards.advantages.groups import SMALLEST_DEVIATION
from sgrec_core.rewards.fusion import fuse, fusion_facts
from sgrec_core.rewards.semantic import worth_judging

SPARE_DRAWS = 4
"""Draws for each place of a sampled group where those of the history are passed over."""
BusinessReward = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Prompts [B] (rows of the histories) and candidates [B, G] (item indices) to rewards [B, G]."""
SemanticReward = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""The same; a group with a NaN counts as not judged."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """How to train the policy."""

    epochs: int
    """Passes over the groups, or over the prompts."""
    batch_size: int
    """Groups per step."""
    learning_rate: float
    clip: float
    beta: float
    """Weight of the KL penalty."""
    seed: int
    loss: str = "clip"
    """One of `sgrec_core.policy.losses.LOSSES`."""
    weight_limit: float = 2.0
    """Where the importance weights of stored groups that were sampled are cut; see `train_stored`."""


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How fresh groups are made and rewarded."""

    group_size: int
    method: Literal["beam", "sampling"]
    """The best items of a constrained beam search, all different; or independent draws, which may repeat."""
    updates: int
    """Optimiser steps on each batch of groups; from the second on the ratio leaves 1 and clipping can bite."""
    objective: str
    """One of `sgrec_core.rewards.advantages.METHODS`."""
    epsilon: float
    resolution: float = SMALLEST_DEVIATION
    """Of the semantic reward; see `Groups`."""
    leave_out_history: bool = False
    """Whether no candidate is an item of the prompt's history, as no list that serves will hold one."""


@dataclass(frozen=True)
class Prompts:
    """N decision points to roll out from, and what rewards their candidates."""

    histories: np.ndarray
    """[N, n] int item indices, oldest first, -1 after the end."""
    business: BusinessReward
    semantic: SemanticReward | None = None
    """Without it nothing is judged."""
    targets: np.ndarray | None = None
    """[N] item that was chosen, -1 for one that is not in the catalogue."""
    sampled: np.ndarray | None = None
    """[N] prompts whose groups may be judged, as `sgrec_core.rewards.semantic.queue_places` chooses; default: all."""


@dataclass(frozen=True)
class StoredGroups:
    """N rollout groups of G candidates with L codes each."""

    histories: np.ndarray
    """[N, n] int item indices, oldest first, -1 after the end."""
    items: np.ndarray
    """[N, G] int item indices."""
    log_probs: np.ndarray
    """[N, G, L] log-probabilities of the codes under the policy that rolled out, which need not be the start."""
    advantages: np.ndarray
    """[N, G], or [N, G, L] where codes have their own."""
    sampled: bool = False
    """Whether candidates were drawn from that policy; otherwise they are its best ones, found by beam search."""

    def with_signal(self) -> "StoredGroups":
        """Only the groups in which some advantage is not zero: the others have no policy gradient."""
        rows = self.advantages.reshape(len(self.advantages), -1).any(axis=1)
        return replace(
            self,
            histories=self.histories[rows],
            items=self.items[rows],
            log_probs=self.log_probs[rows],
            advantages=self.advantages[rows],
        )


def train_stored(
    model: Generator,
    trie: ItemTrie,
    groups: StoredGroups,
    config: PolicyConfig,
    *,
    progress: Callable[[int, dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Improve ``model`` in place; statistics of each step (loss, kl_reference, clip_fraction, entropy, ...).

    Groups without any advantage are left out; with none left the model stays as it is and the list is empty. Ratios
    and the KL penalty are to the model as it starts, whoever rolled out. Where that was another policy, which drew its
    candidates, their advantages are weighed by `truncated_weights`: on average the gradient is then that of draws of
    the start, up to the truncation. The candidates of a beam are no draws: each of the best is there once, whatever
    its probability, under any policy, so there is nothing that a weight could correct. All weigh 1, and what is
    learnt is to tell apart what a policy that does not know the decisions would recommend. The start does know them:
    its probabilities would bring back as weights what it has by heart.

    ``progress`` gets (groups of this step, its statistics). Deterministic by ``config.seed``.
    """
    groups = groups.with_signal()
    count = len(groups.items)
    trie = trie.to(model.device)
    shuffle = np.random.default_rng(config.seed)
    learner = _Learner(model, trie, config, steps=config.epochs * math.ceil(count / config.batch_size))
    before = learner.log_probs(groups.histories, groups.items)
    advantages = groups.advantages
    if groups.sampled:
        behaviour = torch.as_tensor(groups.log_probs, dtype=torch.float32, device=model.device)
        weights = truncated_weights(before, behaviour, config.weight_limit).cpu().numpy()
        advantages = advantages * weights.reshape(weights.shape + (1,) * (advantages.ndim - 2))
    for _ in range(config.epochs):
        order = shuffle.permutation(count)
        for start in range(0, count, config.batch_size):
            rows = order[start : start + config.batch_size]
            histories, items = learner.indices(groups.histories[rows]), learner.indices(groups.items[rows])
            old = before[torch.as_tensor(rows, device=model.device)]
            statistics = learner.step(histories, items, old, old, advantages[rows])
            if progress is not None:
                progress(len(rows), statistics)
    return learner.log


def train_on_policy(
    model: Generator,
    trie: ItemTrie,
    prompts: Prompts,
    config: PolicyConfig,
    rollout: RolloutConfig,
    *,
    progress: Callable[[int, dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Improve ``model`` in place on fresh rollouts of the prompts; statistics of each step.

    Each step rolls out a batch of groups with the policy as it is, rewards them, and computes advantages from the raw
    rewards, of sampled groups that are `worth_judging` from semantic ones as well. The reference of the KL penalty is
    the policy at the start. Groups without any advantage are left out; a batch that has no other leaves the model as it
    is, and its step has no statistics of training. The statistics are those of `train_stored` and, for each step, those
    of `fusion_facts`, groups_with_advantage and the mean business reward.
    """
    trie = trie.to(model.device)
    reference = copy.deepcopy(model).eval()
    shuffle = np.random.default_rng(config.seed)
    draws = torch.Generator(model.device).manual_seed(config.seed)
    of_items = trie.to("cpu")
    batches = math.ceil(len(prompts.histories) / config.batch_size)
    learner = _Learner(model, trie, config, steps=config.epochs * batches * rollout.updates)
    for _ in range(config.epochs):
        order = shuffle.permutation(len(prompts.histories))
        for start in range(0, len(order), config.batch_size):
            rows = order[start : start + config.batch_size]
            histories = learner.indices(prompts.histories[rows])
            beams = _roll_out(model, trie, histories, rollout, draws)
            items = beams.items.cpu().numpy()
            business = prompts.business(rows, items)
            judged, semantic = _judge(prompts, rows, items, business, rollout.objective)
            targets = None if prompts.targets is None else prompts.targets[rows]
            groups = Groups.of(of_items, items, business, semantic, judged, targets, resolution=rollout.resolution)
            fused = fuse(rollout.objective, groups, rollout.epsilon)
            with torch.no_grad():
                anchor = score_items(reference, trie, histories, beams.items).log_probs
            facts = asdict(fusion_facts(fused, judged))
            facts["groups_with_advantage"] = fused.groups_with_advantage
            facts["business_reward"] = float(business.mean())
            # As on stored groups: those without signal would only pull towards the start, in mean and penalty.
            signal = np.flatnonzero(fused.advantage.reshape(len(rows), -1).any(axis=1))
            chosen = learner.indices(signal)
            of_signal = (histories[chosen], beams.items[chosen], beams.log_probs[chosen], anchor[chosen])
            for _ in range(rollout.updates):
                if len(signal):
                    learner.step(*of_signal, fused.advantage[signal])
                else:
                    learner.stay()
                learner.log[-1] |= facts
            if progress is not None:
                progress(len(rows), learner.log[-1])
    return learner.log


def means_of_last_epoch(log: list[dict[str, float]], epochs: int) -> dict[str, float]:
    """The mean of each statistic over those steps of the last of ``epochs`` that have it."""
    values: dict[str, list[float]] = {}
    for step in log[-(len(log) // epochs) :]:
        for name, value in step.items():
            values.setdefault(name, []).append(value)
    return {name: sum(found) / len(found) for name, found in values.items()}


def _roll_out(
    model: Generator, trie: ItemTrie, histories: Tensor, rollout: RolloutConfig, draws: torch.Generator
) -> Beams:
    if rollout.method == "sampling":
        # Draws of the history are passed over; where a policy gives nearly nothing else, some stay.
        spare = SPARE_DRAWS if rollout.leave_out_history else 1
        beams = sample_items(model, trie, histories, count=spare * rollout.group_size, generator=draws)
        if rollout.leave_out_history:
            known = (beams.items[..., None] == histories[:, None, :]).any(dim=-1)
            order = known.int().argsort(dim=1, stable=True)[:, : rollout.group_size]
            beams = _reorder(beams, order)
        # Best first, like beams: the ranking reward goes by place.
        beams = _reorder(beams, beams.scores.argsort(dim=1, descending=True, stable=True))
    else:
        excluded = histories if rollout.leave_out_history else None
        left = trie.items - (histories.shape[1] if rollout.leave_out_history else 0)
        beams = beam_search(model, trie, histories, width=min(rollout.group_size, left), excluded=excluded)
    # Decoding runs in inference mode, whose tensors autograd may not keep.
    return Beams(beams.items.clone(), beams.log_probs.clone())


def _reorder(beams: Beams, order: Tensor) -> Beams:
    levels = beams.log_probs.shape[-1]
    return Beams(beams.items.gather(1, order), beams.log_probs.gather(1, order[..., None].expand(*order.shape, levels)))


def _judge(
    prompts: Prompts, rows: np.ndarray, items: np.ndarray, business: np.ndarray, objective: str
) -> tuple[np.ndarray, np.ndarray]:
    """Which groups were judged [B], and semantic rewards [B, G] with zeros in the others."""
    rewards = np.zeros(items.shape)
    judged = np.zeros(len(items), dtype=bool)
    method = method_of(objective)
    # A night judges stored groups for the table's sake too; fresh ones would be paid for nothing.
    if prompts.semantic is None or not method.reads_semantic:
        return judged, rewards
    chosen = worth_judging(method, business)
    if prompts.sampled is not None:
        chosen &= prompts.sampled[rows]
    if chosen.any():
        found = prompts.semantic(rows[chosen], items[chosen])
        complete = np.isfinite(found).all(axis=1)
        judged[np.flatnonzero(chosen)[complete]] = True
        rewards[judged] = found[complete]
    return judged, rewards


class _Learner:
    """The model, its optimiser, and the log of what each step did."""

    def __init__(self, model: Generator, trie: ItemTrie, config: PolicyConfig, *, steps: int) -> None:
        self.model, self.trie, self.config, self.steps = model.eval(), trie, config, steps
        self.optimiser = optimiser_of(model, config.learning_rate, weight_decay=0.0)
        self.log: list[dict[str, float]] = []

    def indices(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=torch.int64, device=self.model.device)

    @torch.no_grad()
    def log_probs(self, histories: np.ndarray, items: np.ndarray) -> Tensor:
        """[N, G, L] of the codes of items [N, G] under the model as it is."""
        size = self.config.batch_size
        parts = [
            score_items(
                self.model, self.trie, self.indices(histories[at : at + size]), self.indices(items[at : at + size])
            )
            for at in range(0, len(items), size)
        ]
        return torch.cat([part.log_probs for part in parts]) if parts else torch.empty(0)

    def stay(self) -> None:
        """A step that learns nothing: it has no statistics, lest zeros make those of the others look small."""
        self.log.append({})

    def step(
        self, histories: Tensor, items: Tensor, old: Tensor, reference: Tensor, advantages: np.ndarray
    ) -> dict[str, float]:
        """One update on groups items [B, G] with log-probabilities [B, G, L] of old and reference policy."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate * rate_at(len(self.log), self.steps)
        scores = score_items(self.model, self.trie, histories, items)
        free = ~self.trie.forced(items)
        found = LOSSES[self.config.loss](
            scores.log_probs,
            old,
            reference,
            torch.as_tensor(advantages, dtype=torch.float32, device=self.model.device),
            clip=self.config.clip,
            beta=self.config.beta,
            free=free,
        )
        self.optimiser.zero_grad(set_to_none=True)
        found.loss.backward()
        gradient_norm = nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_NORM)
        self.optimiser.step()
        self.log.append(
            {
                "loss": found.loss.item(),
                "kl_reference": found.kl_reference.item(),
                "clip_fraction": found.clip_fraction.item(),
                "ratio": found.ratio.item(),
                "entropy": mean_over_free(scores.entropy, free).item(),
                "gradient_norm": gradient_norm.item(),
                "learning_rate": self.optimiser.param_groups[0]["lr"],
            }
        )
        return self.log[-1]
