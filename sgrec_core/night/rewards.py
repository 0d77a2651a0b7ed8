"""The rewards of a night: the business reward by its registered model, and the version of the rewards."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core.errors import SgrecError
from sgrec_core.generator.dataset import Catalogue
from sgrec_core.hashing import digest
from sgrec_core.judge.engines import day_has_context, judge_version, make_engine
from sgrec_core.lake import Lake
from sgrec_core.lake.queries import decisions, item_hashes
from sgrec_core.night.business import day_context
from sgrec_core.rewards.business import EcpmModel
from sgrec_core.rewards.ranking import ranking_reward
from sgrec_core.runtime.code import CALLS_NONE, code_digest, stage_digest
from sgrec_core.settings import Settings


def choice_of_calls(settings: Settings) -> list[object]:
    """What decides which groups and pairs the judge is asked about: a digest of the code, and the settings."""
    code = code_digest("sgrec_core.judge.calls.plan:plan_day", without=CALLS_NONE["score_aspects"])
    return [code, settings.judge.model_dump(include={"sampling_ratio", "seed", "max_calls", "max_pairs"})]


def version_of_day(lake: Lake, day: str, settings: Settings) -> str:
    """The reward version that the day's tables and the settings make; part of the key of ``rewards``.

    A content hash of the versions of judge, aggregator, business model, policy and tokenizer, of the resolution of
    scores and the fusion settings, of what the judge is asked about, and of the code that makes candidates, weights
    and rewards of them.
    """
    made_by = ["business_version", "policy_version", "tokenizer_version"]
    candidates = lake.read("candidates", where={"day": day}, columns=made_by)
    weights = lake.read("user_weights", where={"day": day}, columns=["aggregator_version"])
    versions = [
        sorted(column.unique().to_pylist())
        for column in (weights["aggregator_version"], *(candidates[name] for name in made_by))
    ]
    code = [stage_digest(stage) for stage in ("generate_candidates", "train_aggregator", "materialize_rewards")]
    has_context = day_has_context(lake, day)
    judge = [judge_version(settings, has_context), make_engine(settings, has_context).resolution]
    made_of = [judge, choice_of_calls(settings), *versions, code, settings.fusion.model_dump()]
    return digest(json.dumps(made_of, sort_keys=True))


def candidates_to_fuse(lake: Lake, day: str) -> pa.Table:
    """The day's candidates, and beside them item_hash of the day's item and target_item of the decision.

    Raises:
        SgrecError: there are none.
    """
    candidates = lake.read("candidates", where={"day": day})
    if not candidates.num_rows:
        raise SgrecError(f"{day} has no candidates; run `python -m jobs.generate_candidates --day {day}` first")
    states = decisions(lake, [day], "train", ["decision_id", "target_item"])
    state = pc.index_in(candidates["decision_id"], states["decision_id"].combine_chunks())
    return candidates.append_column("item_hash", item_hashes(lake, day, candidates["item_id"])).append_column(
        "target_item", states["target_item"].take(state)
    )


def business_reward(
    config: Mapping[str, Any], lake: Lake, day: str, settings: Settings, states: pa.Table, catalogue: Catalogue
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The night's business reward for decision points ``states``: (rows [B], items [B, G]) to rewards [B, G].

    ``config`` is that of the registered business model: the next-item ranking reward, or eCPM.
    """
    if config["kind"] == "ranking":
        targets = catalogue.index(states["target_item"])
        return lambda rows, items: ranking_reward(items, targets[rows])
    context = day_context(lake, day, settings)
    model = EcpmModel.from_config(config)
    return lambda rows, items: model.reward(states.take(rows), [catalogue.ids(row) for row in items], context)
