"""Ask the judge that was trained and the active one about held-out labels and pairs, and pay for no call twice.

Each version runs in a process of its own, with the engine and the settings of nights: a GPU has room for one. Answers are rows of
``aspect_scores``; what they cost is not charged to ``judge.max_calls`` of any night.
"""

import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict

from sgrec_core.job import Job, stage_command
from sgrec_core.judge import day_has_context, judge_version, make_engine
from sgrec_core.judge.calls import Call, Spent, known_calls, publish_scores
from sgrec_core.judge.comparison import held_out, settings_of_roles
from sgrec_core.judge.registered import check_trainable
from sgrec_core.judge.request import JudgeRequest, Usage
from sgrec_core.lake import Lake
from sgrec_core.settings import Settings


def run(job: Job) -> None:
    check_trainable(job.settings)
    held = held_out(job.lake, job.settings, job.day)
    has_context = day_has_context(job.lake, job.day)
    job.count("held_out_labels", len(held.samples))
    job.count("held_out_pairs", len(held.pairs))
    roles = settings_of_roles(job.settings, job.day)
    for role, settings in job.progress(roles.items(), len(roles), "judges"):
        version = judge_version(settings, has_context)
        known = known_calls(job.lake, version)
        missing = {call: held.requests[call] for call in sorted(held.requests) if call not in known}
        spent = Spent()
        if missing:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                spent = process.submit(ask, settings, job.day, version, has_context, missing).result()
        job.count(f"{role}_version", version)
        job.count(f"{role}_cached", len(held.requests) - len(missing))
        job.count(f"{role}_paid", spent.asked)
        job.count(f"{role}_failed", spent.failed)


def ask(settings: Settings, day: str, version: str, has_context: bool, requests: dict[Call, JudgeRequest]) -> Spent:
    """Score and publish, ``judge.shard_size`` calls a commit; runs in a process that starts no other engine."""
    engine = make_engine(settings, has_context)
    calls: Sequence[Call] = list(requests)
    total = Spent()
    for start in range(0, len(calls), settings.judge.shard_size):
        shard, started = calls[start : start + settings.judge.shard_size], time.monotonic()
        before = asdict(engine.usage)
        results = engine.score([requests[call] for call in shard])
        total += publish_scores(
            Lake(settings.lake_root),
            f"{day} labels",  # of no night, so that no night's limit is charged
            version,
            engine.rubric.aspect_ids,
            shard,
            results,
            usage=Usage(**{name: value - before[name] for name, value in asdict(engine.usage).items()}),
            seconds=time.monotonic() - started,
        )
    return total


main = stage_command("score_labels", run)

if __name__ == "__main__":
    main()
