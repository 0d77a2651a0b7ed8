"""Join candidates, aspect scores and user weights; standardise, gate and fuse them into advantages.

The version of the rewards is a hash of all that makes them: judge and what it is asked about, aggregator, business
model, policy, tokenizer, fusion settings and code. Another judge, or another formula, makes other rows beside these.
"""

import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core.hashing import digest
from sgrec_core.judge.calls.scores import CALL, find_scores
from sgrec_core.judge.engines import day_has_context, judge_version, make_engine
from sgrec_core.judge.versions.adapters import resolve_adapter
from sgrec_core.night.generators import day_catalogue
from sgrec_core.night.rewards import candidates_to_fuse, version_of_day
from sgrec_core.rewards.advantages import Method, method_of
from sgrec_core.rewards.semantic import decisions_worth_judging
from sgrec_core.rewards.table import fuse_rewards
from sgrec_core.runtime.job import Job, stage_command


def run(job: Job) -> None:
    resolve_adapter(job)
    fusion = job.settings.fusion
    method = method_of(fusion.objective)
    candidates = candidates_to_fuse(job.lake, job.day)
    has_context = day_has_context(job.lake, job.day)
    judge, resolution = judge_version(job.settings, has_context), make_engine(job.settings, has_context).resolution
    scores = find_scores(job.lake, job.day, judge, _judgeable(candidates, method), [*CALL, "aspects", "scores"])
    weights = job.lake.read("user_weights", where={"day": job.day})
    version = version_of_day(job.lake, job.day, job.settings)
    # Rows of aspect_scores are shared by nights, so their content stands for them.
    fingerprint = job.inputs_fingerprint({"version": version, "scores": digest(scores.to_pylist())})
    partition = {"day": job.day, "reward_version": version}
    if job.skip_if_published({"rewards": partition}, fingerprint):
        return
    catalogue = day_catalogue(job.lake, job.day, candidates["tokenizer_version"][0].as_py())
    rewards = fuse_rewards(
        candidates,
        catalogue,
        scores,
        weights,
        objective=fusion.objective,
        epsilon=fusion.epsilon,
        resolution=resolution,
    )
    job.lake.publish("rewards", rewards.rows, partition=partition, fingerprint=fingerprint)

    for name, value in rewards.facts.items():
        job.fact(name, value)
    job.fact("reward_version", version)
    job.fact("objective", fusion.objective)
    groups, covered = rewards.facts["groups_with_business_variance"], rewards.facts["covered_groups"]
    if covered < groups:
        fate = "get no advantage" if method.needs_every_group else "keep their business advantage"
        why = "" if weights.num_rows else "; there are no user weights for the day"
        job.note(f"{groups - covered} of {groups} groups with business variance were not judged and {fate}{why}")


def _judgeable(candidates: pa.Table, method: Method) -> pa.Table:
    """The candidates that the judge is asked about.

    Other rows of ``aspect_scores`` must not move the rewards: training on fresh groups adds scores of these states, of
    groups, too, that score_aspects skips for want of business variance.
    """
    worth = decisions_worth_judging(method, candidates)
    return candidates.filter(pc.is_in(candidates["decision_id"], value_set=worth))


main = stage_command("materialize_rewards", run)

if __name__ == "__main__":
    main()
