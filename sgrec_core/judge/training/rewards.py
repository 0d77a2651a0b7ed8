"""What GRPO rewards: answers near the label, and weights that order pairs (S-GRec, arXiv 2602.10606)."""

from collections.abc import Sequence

import numpy as np

from sgrec_core.judge.prompt import read_weights
from sgrec_core.judge.rubric import Aspect, Rubric


def aspect_reward(aspect: Aspect, answer: str, label: str) -> float:
    """1 for an answer that is a label at all, 1 more for the right one, and up to 1 for a level near it.

    A workable form by one reproduction (I): 1[exact] + 1 - |level difference| / (levels - 1), and the format.
    """
    labels = list(aspect.value_of)
    if answer not in labels:
        return 0.0
    apart = abs(labels.index(answer) - labels.index(label)) / (len(labels) - 1)
    return 1.0 + float(answer == label) + 1.0 - apart


def order_reward(rubric: Rubric, answer: str, preferred: Sequence[float], other: Sequence[float]) -> float:
    """1[s_hol of the preferred item is the higher one]; -1 for an answer that is not in the form."""
    weights = read_weights(rubric, answer)
    if weights is None:
        return -1.0
    # What differs in the last bit is equal, here and in `ordered_pairs`.
    return float(round(float(np.dot(weights, np.subtract(preferred, other))), 9) > 0)
