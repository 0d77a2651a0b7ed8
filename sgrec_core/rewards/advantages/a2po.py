"""A2PO of S-GRec (arXiv 2602.10606): the semantic advantage counts where it agrees in sign with the business one."""

import numpy as np

from sgrec_core.rewards.advantages.groups import Fused, Groups, Method


def a2po(groups: Groups, epsilon: float) -> Fused:
    """Asymmetric fusion.

        lambda = 1[signs equal] * min(|A_biz|, |A_sem|) / (max(|A_biz|, |A_sem|) + eps)
        A = A_biz + lambda * A_sem

    A group that is not judged keeps A = A_biz with gate 0. Thus A has the sign of A_biz, |A_biz| <= |A| <= 2 |A_biz|,
    and a group without business variance gets no advantage at all.
    """
    biz, sem = groups.business_advantage, groups.semantic_advantage
    smaller, larger = np.minimum(np.abs(biz), np.abs(sem)), np.maximum(np.abs(biz), np.abs(sem))
    gate = (np.sign(biz) == np.sign(sem)) * smaller / (larger + epsilon)
    return Fused(biz + gate * sem, gate)


A2PO = Method(fuse=a2po)
