"""Ask the candidate and the active judge about held-out labels and pairs, and pay for no call twice.

Each runs in a process of its own, with the engine and the settings of nights: a GPU has room for one. Answers are rows
of ``aspect_scores``; what they cost is not charged to ``judge.max_calls`` of any night.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

from sgrec_core.errors import JudgeGoneError
from sgrec_core.judge.calls.ledger import Account, Spent, kind_of
from sgrec_core.judge.calls.requests import Call
from sgrec_core.judge.calls.scores import known_calls, remember_version, score_shard
from sgrec_core.judge.engines import judge_version, make_engine
from sgrec_core.judge.request import JudgeRequest
from sgrec_core.judge.versions.adapters import resolve_adapter
from sgrec_core.judge.versions.comparison import held_out, requests_of, settings_of_roles
from sgrec_core.lake import Lake
from sgrec_core.runtime.job import Job, stage_command
from sgrec_core.settings import Settings


def run(job: Job) -> None:
    resolve_adapter(job)
    held = held_out(job.lake, job.settings, job.day)
    job.fact("held_out_labels", len(held.samples))
    job.fact("held_out_pairs", len(held.pairs))
    roles = settings_of_roles(job.settings, job.day)
    for role, settings in job.progress(roles.items(), len(roles), "judges"):
        version = judge_version(settings, held.has_context)
        known, failed_before = known_calls(job.lake, job.day, version, held.calls)
        requests = requests_of(job.lake, settings, job.day, held)
        missing = {call: requests[call] for call in sorted(requests) if call not in known}
        spent = Spent()
        if missing:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                account = Account(judge_version=version, day=job.day, kind="", purpose="labels")
                spent = process.submit(ask, settings, account, held.has_context, missing, failed_before).result()
        job.fact(f"{role}_version", version)
        job.fact(f"{role}_cached", len(requests) - len(missing))
        job.fact(f"{role}_paid", spent.asked)
        job.fact(f"{role}_failed", spent.failed)


def ask(
    settings: Settings,
    account: Account,
    has_context: bool,
    requests: dict[Call, JudgeRequest],
    failed_before: set[Call],
) -> Spent:
    """Score and publish, ``judge.shard_size`` calls a commit; runs in a process that starts no other engine."""
    lake, engine = Lake(settings.lake_root), make_engine(settings, has_context)
    calls, total = list(requests.items()), Spent()
    account = replace(account, kind=kind_of(engine))
    remember_version(lake, account.judge_version, engine)
    for start in range(0, len(calls), settings.judge.shard_size):
        shard = dict(calls[start : start + settings.judge.shard_size])
        total += score_shard(lake, account, engine, shard, failed_before=failed_before)
        if engine.gone:
            raise JudgeGoneError(engine.gone)
    return total


main = stage_command("score_labels", run)

if __name__ == "__main__":
    main()
