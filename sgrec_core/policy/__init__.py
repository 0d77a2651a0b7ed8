"""Policy optimisation of the generator from rewarded rollout groups."""

from sgrec_core.policy.objectives import PolicyLoss, clipped_policy_loss
from sgrec_core.policy.trainer import PolicyConfig, StoredGroups, train_stored

__all__ = ["PolicyConfig", "PolicyLoss", "StoredGroups", "clipped_policy_loss", "train_stored"]
