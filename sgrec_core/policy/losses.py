"""Losses of policy optimisation; `LOSSES` names them for ``policy.loss``. Advantages come from `sgrec_core.rewards`.

A loss takes log-probabilities [N, G, L] of candidates under the policy, its old self and the reference, advantages
[N, G] or [N, G, L], and by keyword ``clip``, ``beta`` and ``free``.

Means are over free codes, those that had an alternative. A forced code, the only valid one at its node, has
probability 1 under every policy: ratio 1, KL 0, no gradient. Counted, it would do nothing but shrink loss, penalty and
clip fraction by the share of such codes, which is the catalogue's and not the policy's.
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
    """Share of free tokens whose ratio lies outside the clip range."""
    kl_reference: Tensor
    """Mean k3 estimate of KL to the reference per free token, in nats."""
    ratio: Tensor
    """Mean ratio of free tokens; 0 where there is none."""


def k3(log_probs: Tensor, other: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(policy || other) at samples of the policy: never negative, low variance."""
    difference = other - log_probs
    return difference.exp() - difference - 1


def mean_over_free(values: Tensor, free: Tensor | None) -> Tensor:
    """Mean of values [N, G, L] where ``free`` [N, G, L] holds, 0 where it does nowhere; None: all are free."""
    if free is None:
        return values.mean()
    return values.masked_fill(~free, 0.0).sum() / free.sum().clamp(min=1)


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
    free: Tensor | None = None,
) -> PolicyLoss:
    """PPO's clipped surrogate on token ratios, minus beta times the k3 estimate of KL(policy || reference).

    As S-GRec (arXiv 2602.10606) trains. Advantages [N, G] are shared by the tokens of a candidate.

    The mean is over all free tokens of the batch, as DAPO (arXiv 2503.14476) has it: each weighs alike, and a
    candidate's tokens together push along the gradient of its log-probability, which is a sum over them. A mean within
    each candidate first would push one that is settled by its first code L times as hard at that code as one with L
    free codes: a bias by length (Liu et al., 2025, "Dr. GRPO"). Without forced codes both are the mean over tokens.
    """
    if advantages.dim() == 2:
        advantages = advantages[..., None]
    ratio = (log_probs - old_log_probs).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    penalty = k3(log_probs, reference_log_probs)
    with torch.no_grad():
        clip_fraction = mean_over_free(((ratio - 1).abs() > clip).float(), free)
    return PolicyLoss(
        loss=mean_over_free(beta * penalty - surrogate, free),
        clip_fraction=clip_fraction,
        kl_reference=mean_over_free(penalty.detach(), free),
        ratio=mean_over_free(ratio.detach(), free),
    )


LOSSES: dict[str, Callable[..., PolicyLoss]] = {"clip": clipped_policy_loss}
