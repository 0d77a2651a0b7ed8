"""Policy training from stored rollout groups.

What was left out, and why: no value network (the group is the baseline); no fresh rollouts (the reward table holds
the candidates and their log-probabilities, so a night can be retrained from its tables alone); no dropout (old and
new policy must be the same function at the start); no length normalisation (all items have L codes).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from sgrec_core.generator.decoding import score_items
from sgrec_core.generator.model import Generator
from sgrec_core.generator.training import GRADIENT_NORM, optimiser_of, rate_at
from sgrec_core.generator.trie import ItemTrie
from sgrec_core.policy.objectives import clipped_policy_loss


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """How to train the policy."""

    epochs: int
    """Passes over the groups."""
    batch_size: int
    """Groups per step."""
    learning_rate: float
    clip: float
    beta: float
    """Weight of the KL penalty."""
    seed: int


@dataclass(frozen=True)
class StoredGroups:
    """N rollout groups of G candidates with L codes each; the sampling policy is also the KL reference."""

    histories: np.ndarray
    """[N, n] int item indices, oldest first, -1 after the end."""
    items: np.ndarray
    """[N, G] int item indices."""
    log_probs: np.ndarray
    """[N, G, L] log-probabilities of the codes under the policy that sampled them."""
    advantages: np.ndarray
    """[N, G], or [N, G, L] where codes have their own."""

    def with_signal(self) -> "StoredGroups":
        """Only the groups in which some advantage is not zero: the others have no policy gradient."""
        rows = self.advantages.reshape(len(self.advantages), -1).any(axis=1)
        return StoredGroups(self.histories[rows], self.items[rows], self.log_probs[rows], self.advantages[rows])


def train_stored(
    model: Generator,
    trie: ItemTrie,
    groups: StoredGroups,
    config: PolicyConfig,
    *,
    progress: Callable[[int, dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Improve ``model`` in place; statistics of each step (loss, kl_reference, clip_fraction, entropy, ...).

    Groups without any advantage are left out; with none left the model stays as it is and the list is empty.
    ``progress`` gets (groups of this step, its statistics). Deterministic by ``config.seed``.
    """
    groups = groups.with_signal()
    count = len(groups.items)
    trie = trie.to(model.device)
    shuffle = np.random.default_rng(config.seed)
    optimiser = optimiser_of(model, config.learning_rate, weight_decay=0.0)
    batches = math.ceil(count / config.batch_size)
    model.eval()
    log: list[dict[str, float]] = []
    for _ in range(config.epochs):
        order = shuffle.permutation(count)
        for start in range(0, count, config.batch_size):
            rows = order[start : start + config.batch_size]
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * rate_at(len(log), config.epochs * batches)
            old = torch.as_tensor(groups.log_probs[rows], dtype=torch.float32, device=model.device)
            scores = score_items(
                model,
                trie,
                torch.as_tensor(groups.histories[rows], dtype=torch.int64, device=model.device),
                torch.as_tensor(groups.items[rows], dtype=torch.int64, device=model.device),
            )
            objective = clipped_policy_loss(
                scores.log_probs,
                old,
                old,
                torch.as_tensor(groups.advantages[rows], dtype=torch.float32, device=model.device),
                clip=config.clip,
                beta=config.beta,
            )
            optimiser.zero_grad(set_to_none=True)
            objective.loss.backward()
            gradient_norm = nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
            optimiser.step()
            log.append(
                {
                    "loss": objective.loss.item(),
                    "kl_reference": objective.kl_reference.item(),
                    "clip_fraction": objective.clip_fraction.item(),
                    "ratio": objective.ratio.item(),
                    "entropy": scores.entropy.mean().item(),
                    "gradient_norm": gradient_norm.item(),
                    "learning_rate": optimiser.param_groups[0]["lr"],
                }
            )
            if progress is not None:
                progress(len(rows), log[-1])
    return log
