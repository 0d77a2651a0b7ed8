"""The ablation "Reward-Sum" of S-GRec (arXiv 2602.10606): rewards are added before they are standardised."""

import numpy as np

from sgrec_core.rewards.advantages.groups import Fused, Groups, Method, standardise


def reward_sum(groups: Groups, epsilon: float) -> Fused:
    """The standardised sum of raw rewards; zeros in groups that are not judged."""
    judged = np.broadcast_to(groups.judged[:, None], groups.business.shape)
    if groups.semantic is None:
        return Fused(np.zeros_like(groups.business), np.zeros_like(groups.business))
    rewards = np.where(judged, groups.business + groups.semantic, 0.0)
    return Fused(standardise(rewards), judged.astype(np.float64))


REWARD_SUM = Method(fuse=reward_sum, learns_without_variance=True, needs_every_group=True)
