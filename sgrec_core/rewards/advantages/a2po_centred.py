"""A2PO less the mean of the group, so that a group's advantages sum to zero again. Ours, not the paper's.

The gate adds to each candidate by its own size, so that A2PO's advantages of a group do not sum to zero: with one hit
in 16 they sum to about -1.3, which pushes down what the policy ranks high (docs/lab-notes.md, "the gate un-centres the
advantages"). Centred, an advantage may differ in sign from A_biz.
"""

from sgrec_core.rewards.advantages.a2po import a2po
from sgrec_core.rewards.advantages.groups import Fused, Groups, Method, centre


def a2po_centred(groups: Groups, epsilon: float) -> Fused:
    """A2PO's advantages, centred within the group; the gate is A2PO's."""
    fused = a2po(groups, epsilon)
    return Fused(centre(fused.advantage), fused.gate)


A2PO_CENTRED = Method(fuse=a2po_centred)
