"""Policy optimisation of the generator from rewarded rollout groups, stored or fresh."""

from sgrec_core.policy.losses import LOSSES, PolicyLoss, clipped_policy_loss, truncated_weights
from sgrec_core.policy.trainer import (
    PolicyConfig,
    Prompts,
    RolloutConfig,
    StoredGroups,
    means_of_last_epoch,
    train_on_policy,
    train_stored,
)

__all__ = [
    "LOSSES",
    "PolicyConfig",
    "PolicyLoss",
    "Prompts",
    "RolloutConfig",
    "StoredGroups",
    "clipped_policy_loss",
    "means_of_last_epoch",
    "train_on_policy",
    "train_stored",
    "truncated_weights",
]
