"""The business reward alone, standardised within the group: GRPO's advantage, and the ablation "business only"."""

import numpy as np

from sgrec_core.rewards.advantages.groups import Fused, Groups, Method


def business(groups: Groups, epsilon: float) -> Fused:
    """A = A_biz."""
    return Fused(groups.business_advantage, np.zeros_like(groups.business))


BUSINESS = Method(fuse=business, reads_semantic=False)
