"""The semantic reward: what it is, and which groups the judge is asked for one.

The night's plan, the reward table and training on fresh groups all ask here.
"""

import numpy as np
import pyarrow as pa

from sgrec_core.hashing import hash_share
from sgrec_core.rewards.advantages import Method, standardise, tell_apart


def holistic(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[...] sum over aspects of weight times score, both [..., A] or such that they broadcast."""
    return (scores * weights).sum(axis=-1)


def has_variance(business: np.ndarray) -> np.ndarray:
    """[N] groups whose business rewards [N, G] tell their candidates apart."""
    return tell_apart(standardise(business))


def worth_judging(method: Method, business: np.ndarray) -> np.ndarray:
    """[N] groups with business rewards [N, G] whose advantages a semantic reward can move.

    Without business variance A2PO has nothing to gate, hence no semantic gradient.
    """
    if method.learns_without_variance:
        return np.ones(len(business), dtype=bool)
    return has_variance(business)


def decisions_worth_judging(method: Method, candidates: pa.Table) -> pa.Array:
    """decision_id of the groups of ``candidates`` that are `worth_judging`, ascending."""
    candidates, groups = in_groups(candidates)
    decisions = candidates["decision_id"].combine_chunks()
    if not groups:
        return decisions
    business = candidates["business_reward"].to_numpy().reshape(groups, -1)
    return decisions[:: business.shape[1]].filter(pa.array(worth_judging(method, business)))


def queue_places(method: Method, decision_ids: list[str], *, ratio: float, seed: int) -> np.ndarray:
    """[N] place in [0, 1) of each group in the judge's queue; infinite for those outside the sampled share ``ratio``.

    By seeded hash of the decision, so that stored and fresh groups of a decision are judged alike. Places of the
    sampled are stretched over [0, 1) again, so that they queue side by side with other things to judge.
    """
    order = hash_share(decision_ids, f"judge-groups-{seed}")
    return order if method.needs_every_group else np.where(order < ratio, order / ratio, np.inf)


def in_groups(candidates: pa.Table) -> tuple[pa.Table, int]:
    """Candidates sorted by decision and rank, and how many groups they make.

    Raises:
        ValueError: the groups are not of one size.
    """
    candidates = candidates.sort_by([("decision_id", "ascending"), ("rank", "ascending")])
    counts = candidates["decision_id"].value_counts().field("counts").to_numpy()
    if len(set(counts)) > 1:
        raise ValueError(f"{candidates.num_rows} candidates do not make {len(counts)} groups of one size")
    return candidates, len(counts)
