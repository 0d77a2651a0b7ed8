"""Losses of policy optimisation; `LOSSES` names them for ``policy.loss``. Advantages come from `sgrec_core.rewards`.

A loss takes log-probabilities [N, G, L] of candidates under the policy, its old self and the reference, advantages
[N, G] or [N, G, L], and by keyword ``clip`` and ``beta``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicyLoss:
    """The loss to minimise, and what it was made of; the statistics are detached scalars."""

    loss: Tensor
    clip_fraction: Tensor
    """Share of tokens whose ratio lies outside the clip range."""
    kl_reference: Tensor
    """Mean k3 estimate of KL to the reference per token, in nats."""
    ratio: Tensor
    """Mean token ratio."""


def k3(log_probs: Tensor, other: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(policy || other) at samples of the policy: never negative, low variance."""
    difference = other - log_probs
    return difference.exp() - difference - 1


def truncated_weights(start: Tensor, behaviour: Tensor, limit: float) -> Tensor:
    """[N, G] how much more often the start draws candidates [N, G, L] than the policy that drew them did.

    Importance weights, truncated at ``limit`` (Ionides, 2008, Truncated Importance Sampling): their variance is
    bounded, at the price of a bias towards what drew.
    """
    return (start - behaviour).sum(dim=-1).exp().clamp(max=limit)


def clipped_policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    reference_log_probs: Tensor,
    advantages: Tensor,
    *,
    clip: float,
    beta: float,
) -> PolicyLoss:
    """PPO's clipped surrogate on token ratios, minus beta times the k3 estimate of KL(policy || reference).

    As S-GRec (arXiv 2602.10606) trains. Advantages [N, G] are shared by the tokens of a candidate. All items have L
    codes, so the mean over tokens weighs every candidate alike.
    """
    if advantages.dim() == 2:
        advantages = advantages[..., None]
    ratio = (log_probs - old_log_probs).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    penalty = k3(log_probs, reference_log_probs)
    with torch.no_grad():
        clip_fraction = ((ratio - 1).abs() > clip).float().mean()
    return PolicyLoss(
        loss=(beta * penalty - surrogate).mean(),
        clip_fraction=clip_fraction,
        kl_reference=penalty.detach().mean(),
        ratio=ratio.detach().mean(),
    )


LOSSES: dict[str, Callable[..., PolicyLoss]] = {"clip": clipped_policy_loss}
