"""The ablation "Adv-Sum" of S-GRec (arXiv 2602.10606): advantages are added without a gate."""

import numpy as np

from sgrec_core.rewards.advantages.groups import Fused, Groups, Method


def adv_sum(groups: Groups, epsilon: float) -> Fused:
    """A = A_biz + A_sem; zeros in groups that are not judged."""
    judged = np.broadcast_to(groups.judged[:, None], groups.business.shape)
    advantage = np.where(judged, groups.business_advantage + groups.semantic_advantage, 0.0)
    return Fused(advantage, judged.astype(np.float64))


ADV_SUM = Method(fuse=adv_sum, learns_without_variance=True, needs_every_group=True)
