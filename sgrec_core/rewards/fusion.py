"""Fusion of business and semantic reward into one advantage per candidate (S-GRec, arXiv 2602.10606).

Rewards go in as [N, G]: N rollout groups of G candidates. numpy or torch in, the same out; computed in float64.
Standardisation is within the group with the population deviation, and a deviation at or below 1e-8 gives zeros.
Nothing is re-centred after fusion but by `a2po_centred`.
"""

from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", np.ndarray, Tensor)

SMALLEST_DEVIATION = 1e-8
"""A group whose rewards deviate by no more than this has nothing to tell its candidates apart."""


@dataclass(frozen=True)
class Advantages(Generic[Array]):
    """What a fusion makes of rewards; every field [N, G]."""

    advantage: Array
    gate: Array
    """The weight lambda of the semantic advantage, in [0, 1]."""
    business_advantage: Array
    semantic_advantage: Array
    """Zero in groups that were not judged."""


def standardise(rewards: Array) -> Array:
    """(reward - mean) / population deviation within each row; zeros where the deviation is at most 1e-8."""
    return _like(rewards, _standardise(_double(rewards)))


def a2po(business: Array, semantic: Array, judged: Array | None = None, eps: float = 1e-8) -> Advantages[Array]:
    """Asymmetric fusion: the semantic advantage counts where it agrees in sign with the business advantage.

        lambda = 1[signs equal] * min(|A_biz|, |A_sem|) / (max(|A_biz|, |A_sem|) + eps)
        A = A_biz + lambda * A_sem

    ``judged`` [N] (default: all) tells which groups have semantic rewards; the others keep A = A_biz with gate 0
    and may hold NaN. Thus A has the sign of A_biz, |A_biz| <= |A| <= 2 |A_biz|, and a group without business
    variance gets no advantage at all.
    """
    biz = _standardise(_finite("business", _double(business)))
    sem = _standardise(_judged_only(_double(semantic), judged))
    smaller = torch.minimum(biz.abs(), sem.abs())
    larger = torch.maximum(biz.abs(), sem.abs())
    gate = (biz.sign() == sem.sign()) * smaller / (larger + eps)
    return _advantages(business, biz + gate * sem, gate, biz, sem)


def a2po_centred(business: Array, semantic: Array, judged: Array | None = None, eps: float = 1e-8) -> Advantages[Array]:
    """`a2po` less the mean of the group, so that a group's advantages sum to zero again. Ours, not the paper's.

    The gate adds to each candidate by its own size, so that A2PO's advantages of a group do not sum to zero: with one hit
    in 16 they sum to about -1.3, which pushes down what the policy ranks high (docs/lab-notes.md, "the gate un-centres
    the advantages"). Centred, an advantage may differ in sign from A_biz.
    """
    fused = a2po(business, semantic, judged, eps)
    advantage = _double(fused.advantage)
    return replace(fused, advantage=_like(business, advantage - advantage.mean(dim=1, keepdim=True)))


def business(rewards: Array) -> Advantages[Array]:
    """Ablation "business only": A = A_biz."""
    biz = _standardise(_finite("business", _double(rewards)))
    none = torch.zeros_like(biz)
    return _advantages(rewards, biz, none, biz, none)


def reward_sum(business: Array, semantic: Array) -> Advantages[Array]:
    """Ablation "Reward-Sum": the standardised sum of raw rewards. Every group must be judged."""
    raw_business, raw_semantic = _finite("business", _double(business)), _judged_only(_double(semantic), None)
    biz, sem = _standardise(raw_business), _standardise(raw_semantic)
    fused = _standardise(raw_business + raw_semantic)
    return _advantages(business, fused, torch.ones_like(biz), biz, sem)


def adv_sum(business: Array, semantic: Array) -> Advantages[Array]:
    """Ablation "Adv-Sum": A = A_biz + A_sem, no gate. Every group must be judged."""
    biz = _standardise(_finite("business", _double(business)))
    sem = _standardise(_judged_only(_double(semantic), None))
    return _advantages(business, biz + sem, torch.ones_like(biz), biz, sem)


OBJECTIVES = ("business", "reward_sum", "adv_sum", "a2po", "a2po_centred")
UNGATED = ("reward_sum", "adv_sum")
"""Objectives that learn from groups without business variance as well, and only from judged ones."""


def fuse(
    objective: str, business_reward: Array, semantic: Array, judged: Array, eps: float = 1e-8
) -> Advantages[Array]:
    """Advantages of groups of which ``judged`` [N] have semantic rewards, by the name of the objective.

    A group that was not judged keeps its business advantage; under the `UNGATED` objectives, which are not defined for
    it, it gets none. Business and semantic advantage are the same whatever the objective.

    Raises:
        ValueError: the objective is unknown, or a judged group lacks a semantic reward.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"unknown objective {objective!r}; valid are {', '.join(OBJECTIVES)}")
    if objective == "a2po_centred":
        return a2po_centred(business_reward, semantic, judged, eps)
    gated = a2po(business_reward, semantic, judged, eps)
    if objective == "a2po":
        return gated
    if objective == "business":
        only = business(business_reward)
        return Advantages(only.advantage, only.gate, gated.business_advantage, gated.semantic_advantage)
    ungated = {"reward_sum": reward_sum, "adv_sum": adv_sum}[objective]
    whole = ungated(business_reward[judged], semantic[judged])
    advantage, gate = gated.advantage * 0, gated.gate * 0
    advantage[judged], gate[judged] = whole.advantage, whole.gate
    return Advantages(advantage, gate, gated.business_advantage, gated.semantic_advantage)


@dataclass(frozen=True)
class FusionFacts:
    """What a fusion looks like from above; rates are over the candidates of covered groups."""

    groups: int
    groups_with_business_variance: int
    covered_groups: int
    """Judged groups with business variance: those that a semantic gradient can come from."""
    agreement_rate: float
    """Share of candidates whose business and semantic advantage have one sign, not zero."""
    mean_gate: float
    advantage_growth: float
    """Mean |advantage| over mean |business advantage|, minus one, over all groups."""


def fusion_facts(fused: Advantages[np.ndarray], judged: np.ndarray) -> FusionFacts:
    """Facts of a fusion of groups of which ``judged`` [N] have semantic rewards."""
    varied = fused.business_advantage.any(axis=1)
    counted = judged & varied
    biz, sem = fused.business_advantage[counted], fused.semantic_advantage[counted]
    business_size = np.abs(fused.business_advantage).mean() if varied.any() else 0.0
    return FusionFacts(
        groups=len(judged),
        groups_with_business_variance=int(varied.sum()),
        covered_groups=int(counted.sum()),
        agreement_rate=float(((np.sign(biz) == np.sign(sem)) & (biz != 0)).mean()) if counted.any() else 0.0,
        mean_gate=float(fused.gate[counted].mean()) if counted.any() else 0.0,
        advantage_growth=float(np.abs(fused.advantage).mean() / business_size - 1) if business_size else 0.0,
    )


def _standardise(rewards: Tensor) -> Tensor:
    # Subtracting the first candidate's reward first keeps equal rewards exactly equal, whatever their size.
    shifted = rewards - rewards[:, :1]
    centred = shifted - shifted.mean(dim=1, keepdim=True)
    deviation = centred.square().mean(dim=1, keepdim=True).sqrt()
    return torch.where(deviation > SMALLEST_DEVIATION, centred / deviation, 0.0)


def _judged_only(semantic: Tensor, judged: np.ndarray | Tensor | None) -> Tensor:
    """Semantic rewards with zeros in groups not judged; ValueError where a judged group lacks a number."""
    if judged is not None:
        semantic = torch.where(torch.as_tensor(judged).bool()[:, None], semantic, 0.0)
    return _finite("semantic", semantic, "judged ")


def _finite(name: str, rewards: Tensor, which: str = "") -> Tensor:
    """The rewards; ValueError where one is no number."""
    if not rewards.isfinite().all():
        group, candidate = (~rewards.isfinite()).nonzero()[0].tolist()
        raise ValueError(
            f"{name} reward of candidate {candidate} in {which}group {group} is"
            f" {rewards[group, candidate].item()}; {which}groups need a finite reward for every candidate"
        )
    return rewards


def _double(rewards: np.ndarray | Tensor) -> Tensor:
    # Arrow hands out arrays that may not be written to, which torch warns of; a copy is cheap.
    values = torch.tensor(rewards) if isinstance(rewards, np.ndarray) else rewards
    values = values.double()
    if values.dim() != 2:
        raise ValueError(f"rewards must be [groups, candidates], not {tuple(values.shape)}")
    return values


def _like(template: Array, values: Tensor) -> Array:
    if isinstance(template, np.ndarray):
        return values.numpy().astype(np.result_type(template.dtype, np.float32), copy=False)
    return values.to(template.dtype if template.dtype.is_floating_point else torch.float64)


def _advantages(template: Array, advantage: Tensor, gate: Tensor, biz: Tensor, sem: Tensor) -> Advantages[Array]:
    return Advantages(*(_like(template, values) for values in (advantage, gate, biz, sem)))
