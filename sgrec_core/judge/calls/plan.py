"""What a night asks the judge: which calls, in which shards, at what price; and making them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sgrec_core.errors import ContractError, JudgeGoneError
from sgrec_core.hashing import hash_share
from sgrec_core.judge.calls.estimate import SAMPLED_STATES, estimate_tokens
from sgrec_core.judge.calls.ledger import Account, Speed, Spent, kind_of, measured_speed, paid_before
from sgrec_core.judge.calls.requests import Call, day_pairs, day_states, day_texts, have_texts, request
from sgrec_core.judge.calls.scores import known_calls, remember_version, score_shard
from sgrec_core.judge.engines import Engine, day_has_context, judge_version, make_engine
from sgrec_core.judge.engines.embedding import EmbeddingEngine
from sgrec_core.judge.versions.accepted import accept, check_accepted
from sgrec_core.judge.versions.adapters import resolve_adapter
from sgrec_core.rewards.advantages import method_of
from sgrec_core.rewards.semantic import decisions_worth_judging, queue_places
from sgrec_core.runtime.job import Job
from sgrec_core.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What is judged whole or not at all: a candidate group or a preference pair."""

    order: float
    """Place in the queue for ``judge.max_calls``, in [0, 1), alike for groups and pairs, so that neither starves."""
    name: str
    calls: tuple[Call, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which calls the night asks for, and what becomes of each."""

    items: dict[str, tuple[str, str]]
    version: str
    engine: Engine
    groups: int
    groups_without_variance: int
    pairs: int
    units: int
    chosen: int
    """Units that ``judge.max_calls`` pays for."""
    wanted: set[Call]
    known: set[Call]
    failed_before: set[Call]
    """Of the calls to make, those that failed in an earlier run for the day."""
    skipped: set[Call]
    without_text: set[Call]
    """Of groups and pairs that hold an item without text."""
    shards: list[list[list[Call]]]
    """Calls to make, of each of ``judge.workers`` workers, in shards."""

    @property
    def new(self) -> list[Call]:
        return [call for of_worker in self.shards for shard in of_worker for call in shard]

    def facts(self) -> dict[str, int]:
        return {
            "judge_groups": self.groups,
            "judge_groups_without_variance": self.groups_without_variance,
            "judge_pairs": self.pairs,
            "judge_asked": len(self.wanted | self.skipped | self.without_text),
            "judge_cached": len(self.wanted & self.known),
            "judge_skipped": len(self.skipped),
            "judge_without_text": len(self.without_text),
            "judge_unaffordable": len(self.wanted - self.known - set(self.new)),
        }


def plan_day(job: Job) -> Plan | None:
    """The night's calls; None where no item has text.

    Raises:
        ContractError: the day's tables do not fit together.
        SettingsError: rubric or model setting are not valid; nights may not use that judge.
    """
    resolve_adapter(job)
    if not job.looks_only:
        check_accepted(job.settings)
    items = day_texts(job.lake, job.day, job.settings)
    if not any(text for _, text in items.values()):
        return None
    has_context = day_has_context(job.lake, job.day)
    version = judge_version(job.settings, has_context)
    groups, without_variance = _groups(job, items)
    pairs = _pairs(job, items)
    every = sorted(groups + pairs, key=lambda unit: (unit.order, unit.name))
    units = [unit for unit in every if have_texts(unit.calls, items)]
    wanted = {call for unit in units for call in unit.calls}
    known, failed_before = known_calls(job.lake, job.day, version, wanted)
    # After the scores: what workers beside this one are adding is then among what was paid, and the limit holds.
    paid = paid_before(job.lake, job.day, version)
    chosen = _affordable(job.settings.judge.max_calls, paid, units, known)
    skipped = {call for unit in without_variance for call in unit.calls} - wanted
    return Plan(
        items=items,
        version=version,
        engine=make_engine(job.settings, has_context),
        groups=len(groups),
        groups_without_variance=len(without_variance),
        pairs=len(pairs),
        units=len(units),
        chosen=len(chosen),
        wanted=wanted,
        known=known,
        failed_before=failed_before,
        skipped=skipped,
        without_text={call for unit in every for call in unit.calls} - wanted - skipped,
        shards=_shards(job.settings, {call for unit in chosen for call in unit.calls}, known),
    )


def _shards(settings: Settings, calls: set[Call], known: set[Call]) -> list[list[list[Call]]]:
    """New calls by worker and shard.

    A state's calls go to one worker whatever else is asked, so that workers that plan at other moments share nothing.
    Shards are cut before known calls are taken out: after a kill, what remains has the same shards.
    """
    workers, size = settings.judge.workers, settings.judge.shard_size
    states = sorted({call[0] for call in calls})
    worker_of = dict(zip(states, (hash_share(states, "judge-workers") * workers).astype(int).tolist(), strict=True))
    of_worker: list[list[Call]] = [[] for _ in range(workers)]
    for call in sorted(calls):
        of_worker[worker_of[call[0]]].append(call)
    return [
        [
            shard
            for start in range(0, len(mine), size)
            if (shard := [call for call in mine[start : start + size] if call not in known])
        ]
        for mine in of_worker
    ]


def estimate(job: Job, plan: Plan) -> dict[str, Any] | None:
    """Tokens and GPU hours of the calls to pay for; None for a judge without tokens."""
    to_pay = plan.new
    if isinstance(plan.engine, EmbeddingEngine) or not to_pay:
        return None
    sample: list[Call] = []
    states: set[str] = set()
    for call in to_pay:
        if call[0] not in states and len(states) == SAMPLED_STATES:
            break
        states.add(call[0])
        sample.append(call)
    of_state = day_states(job.lake, job.day, states)
    requests = [request(call, of_state[call[0]], plan.items) for call in sample]
    tokens = estimate_tokens(plan.engine, requests, total=len(to_pay))
    stated = job.settings.judge.tokens_per_second
    speed = Speed(stated, counts_computed=True) if stated else measured_speed(job.lake, plan.version, plan.engine)
    hours = None
    if speed:
        # A speed in all tokens of the prompts, from a server that does not tell which it computed, is for all of them.
        work = (tokens.computed if speed.counts_computed else tokens.prompt) + tokens.generated
        hours = job.settings.judge.gpus * work / speed.tokens / 3600
    return {
        "prompt tokens": tokens.prompt,
        "of them computed": tokens.computed,
        "generated tokens": tokens.generated,
        "GPU hours": hours,
    }


def score_shards(job: Job, shards: list[list[Call]], plan: Plan, *, worker: str = "") -> Spent:
    """Score and publish shard after shard.

    Raises:
        JudgeGoneError: nobody answers any more.
    """
    states = day_states(job.lake, job.day, {state for shard in shards for state, _, _ in shard})
    remember_version(job.lake, plan.version, plan.engine)
    account = Account(judge_version=plan.version, day=job.day, kind=kind_of(plan.engine), worker=worker)
    total = Spent()
    with job.progress_bar(sum(map(len, shards)), f"judge worker {worker}" if worker else "judging") as advance:
        for shard in shards:
            requests = {call: request(call, states[call[0]], plan.items) for call in shard}
            total += score_shard(job.lake, account, plan.engine, requests, failed_before=plan.failed_before)
            advance(len(shard))
            if plan.engine.gone:
                raise JudgeGoneError(plan.engine.gone)
    if plan.known or total.asked > total.failed:
        # Not before it has shown that it can be loaded and answers.
        accept(job.settings, job.day, "first", "the first judge of this home")
    return total


def work(job: Job, worker: int) -> None:
    """Score the shards of one of ``judge.workers`` workers; the ledger says what it took."""
    plan = plan_day(job)
    if plan is not None:
        score_shards(job, plan.shards[worker], plan, worker=str(worker))


def _groups(job: Job, items: dict[str, tuple[str, str]]) -> tuple[list[Unit], list[Unit]]:
    """The groups to judge, a share ``sampling_ratio`` of those worth it, and those that are not: without variance."""
    columns = ["decision_id", "state_id", "rank", "item_id", "business_reward"]
    rows = job.lake.read("candidates", where={"day": job.day}, columns=columns)
    decisions, starts = np.unique(rows["decision_id"].to_numpy(zero_copy_only=False).astype(str), return_index=True)
    states, candidates = rows["state_id"].to_pylist(), rows["item_id"].to_pylist()
    method = method_of(job.settings.fusion.objective)
    worth = set(decisions_worth_judging(method, rows).to_pylist())
    if unknown := sorted(set(candidates) - items.keys()):
        raise ContractError(
            f"table candidates of {job.day}: {len(unknown)} items are not in the day's items, first {unknown[0]!r}; "
            "re-run tokenize_items and generate_candidates"
        )
    judge = job.settings.judge
    places = queue_places(method, decisions.tolist(), ratio=judge.sampling_ratio, seed=judge.seed)
    chosen, without_variance = [], []
    ends = [*starts[1:], len(candidates)]
    for decision, start, end, place in zip(decisions.tolist(), starts, ends, places.tolist(), strict=True):
        calls = tuple((states[row], candidates[row], items[candidates[row]][0]) for row in range(start, end))
        unit = Unit(order=place, name=decision, calls=calls)
        if decision not in worth:
            without_variance.append(unit)
        elif place < np.inf:
            chosen.append(unit)
    return chosen, without_variance


def _pairs(job: Job, items: dict[str, tuple[str, str]]) -> list[Unit]:
    """At most ``judge.max_pairs`` preference pairs of training users, chosen by seeded hash."""
    judge = job.settings.judge
    pairs = day_pairs(job.lake, job.day, "train", items, limit=judge.max_pairs, seed=judge.seed)
    # The rank, not the hash: a small sample of many pairs has only small hashes.
    return [
        Unit(order=place / len(pairs), name=pair.name, calls=(pair.preferred, pair.other))
        for place, pair in enumerate(pairs)
    ]


def _affordable(limit: int | None, paid: int, units: list[Unit], known: set[Call]) -> list[Unit]:
    """The units that ``judge.max_calls`` pays for: whole ones, in their order, up to the first that is too dear.

    What earlier runs of this night ``paid`` counts, so that a re-run pays nothing more.
    """
    if limit is None:
        return units
    left = max(0, limit - paid)
    seen = set(known)
    for number, unit in enumerate(units):
        new = set(unit.calls) - seen
        if len(new) > left:
            return units[:number]
        left -= len(new)
        seen |= new
    return units
