"""Improve the night's starting policy with the stored rewards and register it as challenger.

Stored policy optimisation: the candidates and log-probabilities of the night's rollout, the advantages of the night's
reward version, and the starting policy as KL reference.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core.errors import SgrecError
from sgrec_core.generator.dataset import Catalogue, history_matrix
from sgrec_core.job import Job, stage_command
from sgrec_core.night import (
    SUPERVISED,
    day_catalogue,
    decisions,
    load_generator,
    mark_of_night,
    of_night,
    register_generator,
    table_versions,
    use_threads,
)
from sgrec_core.policy import PolicyConfig, StoredGroups, train_stored
from sgrec_core.registry import CHALLENGER, GENERATOR, ModelVersion, Registry
from sgrec_core.rewards.table import version_of_day


def run(job: Job) -> None:
    settings = job.settings.policy
    registry = Registry(job.settings)
    start = of_night(registry, SUPERVISED, job.day, stage="train_supervised")
    reward_version = version_of_day(job.lake, job.day, job.settings)
    partition = {"day": job.day, "reward_version": reward_version}
    published = job.lake.fingerprint("rewards", partition)
    if published is None:
        raise SgrecError(
            f"rewards has no rows of version {reward_version} for {job.day};"
            f" run `python -m jobs.materialize_rewards --day {job.day}` first"
        )
    fingerprint = job.inputs_fingerprint(
        {
            "start": [start.version, start.fingerprint],
            "rewards": [reward_version, published],
            "policy": settings.model_dump(),
        }
    )
    made_before = registry.find(GENERATOR, fingerprint)
    if made_before is not None and not job.force:
        _nominate(job, registry, made_before)
        job.keep_facts()
        return

    use_threads(job.settings)
    model, registered = load_generator(registry, start)
    catalogue = day_catalogue(job.lake, job.day, registered["tokenizer_version"], model.config.codebook_size)
    groups = _stored_groups(job, catalogue, reward_version, start)
    config = PolicyConfig(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        clip=settings.clip,
        beta=settings.kl_weight,
        seed=settings.seed,
    )
    used = len(groups.with_signal().items)
    with job.progress_bar(config.epochs * used, "training groups") as advance:
        log = train_stored(model, catalogue.trie, groups, config, progress=lambda count, _: advance(count))

    statistics = log[-1] if log else {}
    version = register_generator(
        registry,
        GENERATOR,
        model,
        catalogue,
        day=job.day,
        fingerprint=fingerprint,
        metrics=statistics,
        parameters={**settings.model_dump(), "objective": job.settings.fusion.objective, "groups": used},
        tables=table_versions(job.lake, job.stage.reads),
        tags={"sgrec.reward_version": reward_version, "sgrec.policy_version": start.version},
    )
    _nominate(job, registry, version)
    job.count("challenger_version", version.version)
    job.count("started_from", str(start))
    job.count("groups", len(groups.items))
    job.count("groups_with_advantage", used)
    job.count("steps", len(log))
    for name in ("loss", "kl_reference", "clip_fraction", "entropy"):
        if statistics:
            job.count(name, statistics[name])
    if not used:
        job.note("no candidate has any advantage: the challenger equals the night's starting policy")


def _nominate(job: Job, registry: Registry, version: ModelVersion) -> None:
    """Make ``version`` the night's generator and the challenger, unless a later night has promoted already."""
    mark_of_night(registry, version)
    newest = registry.newest_promotion()
    if newest is None or newest.tags["sgrec.promoted_day"] <= job.day:
        registry.set_alias(version, CHALLENGER)
    else:
        job.note(f"alias challenger stays: night {newest.tags['sgrec.promoted_day']} has promoted {newest} since")


def _stored_groups(job: Job, catalogue: Catalogue, reward_version: str, start: ModelVersion) -> StoredGroups:
    """The night's rollout groups with their advantages.

    Raises:
        SgrecError: candidates are those of another policy, or do not fit the rewards.
    """
    candidates = job.lake.read("candidates", where={"day": job.day}).sort_by(
        [("decision_id", "ascending"), ("rank", "ascending")]
    )
    rewards = job.lake.read(
        "rewards",
        where={"day": job.day, "reward_version": reward_version},
        columns=["decision_id", "rank", "item_id", "advantage"],
    ).sort_by([("decision_id", "ascending"), ("rank", "ascending")])
    policies = candidates["policy_version"].unique().to_pylist()
    if policies != [start.version]:
        raise SgrecError(
            f"candidates of {job.day} were rolled out by {SUPERVISED} version {', '.join(policies)}, the night's is"
            f" {start.version}; run `python -m jobs.generate_candidates --day {job.day}` and the stages behind it"
        )
    same = ["decision_id", "rank", "item_id"]
    if candidates.select(same) != rewards.select(same):
        raise SgrecError(
            f"rewards of {job.day} are not about the day's candidates;"
            f" run `python -m jobs.materialize_rewards --day {job.day}` first"
        )
    states = decisions(job.lake, [job.day], "train", ["decision_id", "history"])
    wanted = np.unique(candidates["decision_id"].to_numpy())
    row = pc.index_in(pa.array(wanted, pa.string()), states["decision_id"].combine_chunks())
    groups = len(wanted)
    log_probs = candidates["log_probs"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return StoredGroups(
        histories=history_matrix(states["history"].take(row), catalogue, job.settings.states.max_history),
        items=catalogue.index(candidates["item_id"]).reshape(groups, -1),
        log_probs=log_probs.reshape(groups, -1, catalogue.codes.shape[1]),
        advantages=rewards["advantage"].to_numpy().reshape(groups, -1),
    )


main = stage_command("train_generator", run)

if __name__ == "__main__":
    main()
