"""Recipes: the settings and the code that make a candidate. Evidence over nights is about them, not about versions."""

import json

from sgrec_core.hashing import digest
from sgrec_core.judge.engines import day_has_context, judge_version
from sgrec_core.lake import Lake
from sgrec_core.night.generators import backbone_digest
from sgrec_core.night.rewards import choice_of_calls
from sgrec_core.registry import ModelVersion
from sgrec_core.runtime.code import stage_digest
from sgrec_core.settings import Settings

REWARDS_TAG = "sgrec.reward_version"
"""Of an optimised policy: what it was optimised for."""
RECIPE_TAG = "sgrec.recipe"
"""Of a version of a generator; absent where it was made before there were recipes."""


def supervised_recipe(settings: Settings, leave_out_history: bool) -> str:
    """Of a night's supervised policy, whose lists leave out the history or do not."""
    return _recipe(
        settings,
        leave_out_history,
        ("tokenize_items", "train_supervised"),
        items=settings.items.model_dump(),
        states=settings.states.model_dump(),
        supervised=settings.supervised.model_dump(mode="json", exclude={"checkpoint_steps", "processes", "backbone"}),
        backbone=backbone_digest(settings.supervised),
    )


def optimised_recipe(lake: Lake, day: str, settings: Settings, leave_out_history: bool) -> str:
    """Of a night's optimised policy: that of its start, and all that rewards and improves it."""
    return _recipe(
        settings,
        leave_out_history,
        ("fit_business_reward", "generate_candidates", "train_aggregator", "materialize_rewards", "train_generator"),
        start=supervised_recipe(settings, leave_out_history),
        judge=judge_version(settings, day_has_context(lake, day)),
        asked=choice_of_calls(settings),
        **{
            name: getattr(settings, name).model_dump(mode="json")
            for name in ("business", "rollout", "aggregator", "fusion", "policy")
        },
    )


def is_of_another_recipe(one: ModelVersion, other: ModelVersion) -> bool:
    """Whether two versions of the generator are known to be made otherwise."""
    recipes = one.tags.get(RECIPE_TAG), other.tags.get(RECIPE_TAG)
    return all(recipes) and recipes[0] != recipes[1]


def is_optimised(version: ModelVersion) -> bool:
    """Whether a version of the generator is more than a supervised policy."""
    return REWARDS_TAG in version.tags


def _recipe(settings: Settings, leave_out_history: bool, stages: tuple[str, ...], **parts: object) -> str:
    code = [stage_digest(stage) for stage in stages]
    # How lists are made is part of what a policy is made and compared for.
    lists = [leave_out_history, settings.evaluation.beam]
    return digest(json.dumps([code, lists, parts], sort_keys=True))
