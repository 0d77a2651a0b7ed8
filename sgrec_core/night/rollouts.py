"""Who rolls out a night's groups: a policy that was trained on none of their decisions.

A policy ranks by heart the items that it was trained to predict. Of groups that it rolls out for its own training
decisions nearly all hold the chosen item (77% on Scientific, where 14% of unseen ones do), so what is rewarded is what
was memorised. The champion of the nights before knows nothing of the night's decisions; where there is none to ask,
they are cross-fitted (Chernozhukov et al., 2018, arXiv 1608.00060): each half of the users is rolled out by a policy
that was trained on the other half.
"""

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core.errors import SgrecError
from sgrec_core.hashing import hash_share
from sgrec_core.lake import Lake
from sgrec_core.lake.queries import days_until, decisions
from sgrec_core.night.generators import TOKENIZER_TAG
from sgrec_core.registry import ModelVersion, Registry
from sgrec_core.settings import Settings

FOLDS = 2
ROLLED_OUT_BY = "sgrec.rolled_out_by"
"""Of a night's supervised policy: names and versions, as JSON, of what rolls out its groups; see `rollout_policies`."""
WARM_STARTED_FROM = "sgrec.warm_started_from"
"""Of a night's supervised policy: the champion that it went on from, in words, or ``scratch``."""
FOLD_SEED = "sgrec.fold_seed"
"""Of a policy that was trained on a fold: what the folds were drawn by."""
SAME = ["user_id", "request_id", "target_item"]
"""Columns that tell a decision from others on whatever day it stands: its id holds the day."""
MOST_MET = 0.1
"""Above this share of decisions that the champion may have been trained on the night is cross-fitted.

Below it they are left out of the groups: requests that go on over midnight are decisions of both days.
"""


def why_cross_fit(
    lake: Lake, day: str, settings: Settings, champion: ModelVersion | None, tokenizer_version: str
) -> str | None:
    """In words, what keeps the pinned champion from rolling out the groups of ``day``; None where nothing does."""
    if champion is None:
        return "no champion served before"
    if champion.day >= day:
        return f"{champion} was made by the night of {champion.day}"
    if champion.tags.get(TOKENIZER_TAG) != tokenizer_version:
        return f"{champion} reads other semantic ids"
    met = met_before(lake, champion, settings, decisions(lake, [day], "train", SAME))
    # Static sets have no time of their own: their days may hold the same decisions again and again.
    if len(met) and met.mean() > MOST_MET:
        return f"{met.mean():.0%} of the day's decisions stand in days that {champion} was trained on"
    return None


def days_of_training(champion: ModelVersion, settings: Settings) -> list[str]:
    """Days whose decisions the champion was trained on. What it started from has seen older ones too, no later ones."""
    return days_until(champion.day, settings.states.history_days)


def met_before(lake: Lake, champion: ModelVersion, settings: Settings, states: pa.Table) -> np.ndarray:
    """[N] bool: which of the decisions (columns `SAME`) stand among those that the champion was trained on."""
    known = decisions(lake, days_of_training(champion, settings), "train", SAME)
    return pc.is_in(_names(states), value_set=_names(known)).to_numpy(zero_copy_only=False)


def fold_of(users: Sequence[str], seed: int) -> np.ndarray:
    """[N] int64 fold of each user, in [0, `FOLDS`)."""
    return (hash_share(users, f"rollout-fold-{seed}") * FOLDS).astype(np.int64)


def as_tag(policies: Sequence[ModelVersion]) -> dict[str, str]:
    """The tag by which `rollout_policies` finds them."""
    return {ROLLED_OUT_BY: json.dumps([[policy.name, policy.version] for policy in policies])}


def rollout_policies(registry: Registry, supervised: ModelVersion) -> list[ModelVersion]:
    """What rolls out the groups of the night that made ``supervised``: the champion alone, or a policy for each fold.

    Raises:
        SgrecError: the night was made before groups had policies of their own.
    """
    if ROLLED_OUT_BY not in supervised.tags:
        raise SgrecError(
            f"{supervised} names no policy that rolls out its night's groups;"
            f" run `python -m jobs.train_supervised --day {supervised.day}` first"
        )
    return [registry.get(name, version) for name, version in json.loads(supervised.tags[ROLLED_OUT_BY])]


def champion_to_optimise(supervised: ModelVersion, policies: Sequence[ModelVersion]) -> ModelVersion | None:
    """Who rolls out the night's groups, where ``supervised`` went on from it: the champion, which knows none of them.

    None where groups are cross-fitted, and where the champion has another shape than the settings.
    """
    return policies[0] if supervised.tags.get(WARM_STARTED_FROM) == str(policies[0]) else None


def place_of_policy(policies: Sequence[ModelVersion], users: Sequence[str]) -> np.ndarray:
    """[N] which of the night's policies rolls out for each user: by the folds that they were trained on."""
    if len(policies) == 1:
        return np.zeros(len(users), dtype=np.int64)
    return fold_of(users, int(policies[0].tags[FOLD_SEED]))


def _names(states: pa.Table) -> pa.Array:
    """[N] one text for each decision."""
    return pc.binary_join_element_wise(
        *(states[name].combine_chunks() for name in SAME), "\x1f", null_handling="replace", null_replacement=""
    )
