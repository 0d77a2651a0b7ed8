"""Whether users of a source come back to items of their history, and so whether lists may hold these."""

import pyarrow.compute as pc

from sgrec_core.lake import Lake
from sgrec_core.lake.queries import days_until, decisions
from sgrec_core.settings import Settings

REPEATS = 0.001
"""Share of training targets below which users of a source are taken never to repeat an item."""


def repeat_share(lake: Lake, days: list[str]) -> float:
    """Share of the days' training decisions whose target is in its history; 0 where there is none."""
    states = decisions(lake, days, "train", ["history", "target_item"])
    history = states["history"].combine_chunks()
    decision = pc.list_parent_indices(history)
    same = pc.equal(pc.list_flatten(history), states["target_item"].combine_chunks().take(decision))
    return len(decision.filter(same).unique()) / max(states.num_rows, 1)


def leaves_out_history(lake: Lake, day: str, settings: Settings) -> bool:
    """Whether rollouts, evaluation and serving leave out what a user has in the history (``evaluation.history``).

    A list of impossible items tells nothing: on a source without repeats they took a seventh of the first ten places.
    """
    declared = settings.evaluation.history
    if declared != "auto":
        return declared == "left_out"
    return repeat_share(lake, days_until(day, settings.states.history_days)) < REPEATS
