"""Advantages of rollout groups: a method is a small module, and `METHODS` names it for ``fusion.objective``."""

from sgrec_core.rewards.advantages.a2po import A2PO
from sgrec_core.rewards.advantages.a2po_centred import A2PO_CENTRED
from sgrec_core.rewards.advantages.adv_sum import ADV_SUM
from sgrec_core.rewards.advantages.business import BUSINESS
from sgrec_core.rewards.advantages.groups import Fused, Groups, Method, standardise, tell_apart
from sgrec_core.rewards.advantages.reward_sum import REWARD_SUM

METHODS: dict[str, Method] = {
    "business": BUSINESS,
    "reward_sum": REWARD_SUM,
    "adv_sum": ADV_SUM,
    "a2po": A2PO,
    "a2po_centred": A2PO_CENTRED,
}


def method_of(objective: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: there is none.
    """
    if objective not in METHODS:
        raise ValueError(f"unknown objective {objective!r}; valid are {', '.join(METHODS)}")
    return METHODS[objective]


__all__ = ["METHODS", "Fused", "Groups", "Method", "tell_apart", "method_of", "standardise"]
