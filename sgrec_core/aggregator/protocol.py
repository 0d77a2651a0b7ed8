"""What gives weights for states, whatever is behind it."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Aggregator(Protocol):
    """The night's weights of the aspects; `sgrec_core.night.aggregators` has the kinds."""

    @property
    def version(self) -> str:
        """What ``user_weights`` calls it: a version of its registered model."""

    def weights(self, states: Sequence[str]) -> np.ndarray:
        """Weights [N, A] of N >= 1 states of the day, by state_id; each row sums to one."""
