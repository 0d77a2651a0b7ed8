"""Fusion of business and semantic reward into advantages, by the name of a method; what it looks like from above.

Standardisation is within the group with the population deviation, and a deviation at or below 1e-8 gives zeros. Nothing
is re-centred after fusion but by ``a2po_centred``. All is computed in float64.
"""

from dataclasses import dataclass

import numpy as np

from sgrec_core.rewards.advantages import Groups, method_of, tell_apart


@dataclass(frozen=True)
class Advantages:
    """What a fusion makes of rewards; every field [N, G]."""

    advantage: np.ndarray
    """Or [N, G, L], from methods that give each code its own."""
    gate: np.ndarray
    """The weight lambda of the semantic advantage, in [0, 1]."""
    business_advantage: np.ndarray
    semantic_advantage: np.ndarray
    """Zero in groups that were not judged."""

    @property
    def groups_with_advantage(self) -> int:
        return int(self.advantage.reshape(len(self.advantage), -1).any(axis=1).sum())


def fuse(objective: str, groups: Groups, epsilon: float = 1e-8) -> Advantages:
    """Advantages by the method of that name; business and semantic advantage are the same whatever the method.

    Raises:
        ValueError: there is no such method.
    """
    fused = method_of(objective).fuse(groups, epsilon)
    return Advantages(fused.advantage, fused.gate, groups.business_advantage, groups.semantic_advantage)


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


def fusion_facts(fused: Advantages, judged: np.ndarray) -> FusionFacts:
    """Facts of a fusion of groups of which ``judged`` [N] have semantic rewards."""
    varied = tell_apart(fused.business_advantage)
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
