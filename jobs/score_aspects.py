"""Judge the day's candidate groups and preference pairs, aspect by aspect, and pay for no call twice.

A call is a distinct (state, item, item content); scores are keyed by these and ``judge_version``, not by day. Of the
calls that the night's groups and pairs ask for (`judge_asked`):

- `judge_cached` are in ``aspect_scores`` already. Failed ones are tried again, except where the item has no text;
- `judge_skipped` belong only to groups without business variance, which get no semantic gradient (S-GRec, arXiv
  2602.10606: A2PO's gate);
- `judge_unaffordable` lie beyond ``judge.max_calls``: their groups, always whole ones, fall back to the business
  reward;
- `judge_without_text` belong only to groups and pairs that hold an item without text, which nobody can score: such
  groups fall back to the business reward as well;
- `judge_paid` are made now, `judge_unanswered` as well but by nobody; `judge_failed` of both became rows without
  scores.

Groups outside the share ``judge.sampling_ratio`` ask for nothing. Calls are published in shards, one commit each: a
killed job continues where it was, and ends with the table of an undisturbed one. `judge_gate` says by what nights may
use this judge.

A call that nobody answered is not charged to ``judge.max_calls``. `jobs.estimate_judge` says beforehand what it would
cost. With ``judge.workers`` above 1, workers (`jobs.judge_worker`) have gone before, each with an engine of its own;
this stage then does what they left and counts what they paid as its own.
"""

from sgrec_core.judge.calls.drift import tell_drift
from sgrec_core.judge.calls.flags import tell_flagged
from sgrec_core.judge.calls.ledger import close_night, uncounted_workers
from sgrec_core.judge.calls.plan import estimate, plan_day, score_shards
from sgrec_core.judge.engines import is_meaningless
from sgrec_core.judge.versions.accepted import find_accepted
from sgrec_core.judge.versions.adapters import resolve_adapter
from sgrec_core.runtime.job import Job, stage_command


def run(job: Job) -> None:
    resolve_adapter(job)
    job.fact("judge_engine", job.settings.judge.engine)
    job.fact("judge_meaningless", is_meaningless(job.settings))
    plan = plan_day(job)
    if plan is None:
        job.note("no item text: business reward only; nothing was judged")
        for name in ("asked", "cached", "skipped", "unaffordable", "without_text", "paid", "unanswered", "failed"):
            job.fact(f"judge_{name}", 0)
        return
    job.fact("judge_version", plan.version)
    if is_meaningless(job.settings):
        job.note("the judge is the tiny untrained model: its scores are meaningless")
    expected = estimate(job, plan)
    helped = uncounted_workers(job.lake, job.day, plan.version)
    spent = score_shards(job, [shard for of_worker in plan.shards for shard in of_worker], plan)
    if accepted := find_accepted(job.settings, plan.version):
        job.fact("judge_gate", f"{accepted.how}, {accepted.day}: {accepted.reason}")
    facts = plan.facts()
    # What workers scored tonight was not in the table before tonight; what they failed at was asked again.
    scored = helped.asked - helped.failed
    facts["judge_cached"] -= scored
    for name, value in facts.items():
        job.fact(name, value)
    job.fact("judge_paid", spent.asked - spent.unanswered + scored)
    job.fact("judge_unanswered", spent.unanswered)
    job.fact("judge_failed", spent.failed)
    spent = spent + helped
    if spent.format_measured:
        job.fact("judge_left_format", spent.left_format / spent.format_measured)
    if spent.prompt:
        job.fact("judge_tokens_prompt", spent.prompt)
        job.fact("judge_tokens_cached", spent.cached)
        job.fact("judge_tokens_generated", spent.generated)
        job.fact("judge_gpu_hours", job.settings.judge.gpus * spent.seconds / 3600)
    if expected is not None and not helped.prompt:
        job.fact("judge_tokens_estimated", expected["prompt tokens"])
        job.fact("judge_tokens_computed_estimated", expected["of them computed"])
        job.fact("judge_gpu_hours_estimated", expected["GPU hours"])
    tell_flagged(job, plan)
    tell_drift(job, plan.version)
    if plan.without_text:
        job.note(
            f"{len(plan.without_text)} calls of groups and pairs that hold an item without text were not made: without"
            " the scores of all its items a group falls back to the business reward"
        )
    if plan.chosen < plan.units:
        job.note(
            f"judge.max_calls={job.settings.judge.max_calls}: {plan.units - plan.chosen} of {plan.units} groups and "
            "pairs were not judged; such groups fall back to the business reward"
        )
    close_night(job.lake, job.day, plan.version)


main = stage_command("score_aspects", run)

if __name__ == "__main__":
    main()
