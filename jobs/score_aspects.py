"""Judge the day's candidate groups and preference pairs, aspect by aspect, and pay for no call twice.

A call is a distinct (state, item, item content); scores are keyed by these and ``judge_version``, not by day. Of the
calls that the night's groups and pairs ask for (`judge_asked`):

- `judge_cached` are in ``aspect_scores`` already. Failed ones are tried again, except where the item has no text;
- `judge_skipped` belong only to groups without business variance, which get no semantic gradient (papers.md, section
  1: A2PO);
- `judge_unaffordable` lie beyond ``judge.max_calls``: their groups, always whole ones, fall back to the business
  reward;
- `judge_without_text` are about items that have no text, which no judge is asked about;
- `judge_paid` are made now, of which `judge_failed` became rows without scores.

Groups outside the share ``judge.sampling_ratio`` ask for nothing. Calls are published in shards, one commit each: a
killed job continues where it was, and ends with the table of an undisturbed one.
"""

from dataclasses import dataclass

import numpy as np

from sgrec_core.errors import ContractError
from sgrec_core.job import Job, stage_command
from sgrec_core.judge import (
    Engine,
    day_has_context,
    is_meaningless,
    judge_version,
    make_engine,
)
from sgrec_core.judge.calls import (
    Call,
    CallCounts,
    day_states,
    day_texts,
    known_calls,
    paid_before,
    publish_scores,
    request,
)
from sgrec_core.judge.prompt import flags
from sgrec_core.rewards.fusion import UNGATED
from sgrec_core.rewards.table import varied_groups
from sgrec_core.sampling import hash_share

FLAGGED_SHOWN = 50


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What is judged whole or not at all: a candidate group or a preference pair."""

    order: float
    """Place in the queue for ``judge.max_calls``, in [0, 1), alike for groups and pairs, so that neither starves."""
    name: str
    calls: tuple[Call, ...]


def run(job: Job) -> None:
    items = day_texts(job.lake, job.day)
    job.count("judge_engine", job.settings.judge.engine)
    job.count("judge_meaningless", is_meaningless(job.settings))
    if not any(text for _, text in items.values()):
        job.note("no item text: business reward only; nothing was judged")
        for name in ("asked", "cached", "skipped", "unaffordable", "without_text", "paid", "failed"):
            job.count(f"judge_{name}", 0)
        return
    has_context = day_has_context(job.lake, job.day)
    version = judge_version(job.settings, has_context)
    job.count("judge_version", version)
    if is_meaningless(job.settings):
        job.note("the judge is the tiny untrained model: its scores are meaningless")

    groups, without_variance = _groups(job, items)
    pairs = _pairs(job, items)
    units = sorted(groups + pairs, key=lambda unit: (unit.order, unit.name))
    known = known_calls(job.lake, version)
    chosen = _affordable(job, units, known, items, version)
    wanted = {call for unit in units for call in unit.calls}
    skipped = {call for unit in without_variance for call in unit.calls} - wanted

    # Shards are cut before cached calls are taken out: after a kill, what remains has the same shards.
    calls = sorted({call for unit in chosen for call in unit.calls})
    size = job.settings.judge.shard_size
    shards = [
        [call for call in calls[start : start + size] if call not in known] for start in range(0, len(calls), size)
    ]
    engine = make_engine(job.settings, has_context)
    made = _score_shards(job, [shard for shard in shards if shard], items, engine, version)

    job.count("judge_groups", len(groups))
    job.count("judge_groups_without_variance", len(without_variance))
    job.count("judge_pairs", len(pairs))
    job.count("judge_asked", len(wanted | skipped))
    job.count("judge_cached", len(wanted & known))
    job.count("judge_skipped", len(skipped))
    job.count("judge_unaffordable", len(wanted - known - set(calls)))
    job.count("judge_without_text", made.without_text)
    job.count("judge_paid", made.paid)
    job.count("judge_failed", made.failed)
    if made.format_measured:
        job.count("judge_left_format", made.left_format / made.format_measured)
    if engine.usage.prompt:
        for name, value in vars(engine.usage).items():
            job.count(f"judge_tokens_{name}", value)
    flagged = _flagged({item for _, item, _ in wanted}, items, engine)
    job.count("judge_flagged", len(flagged))
    if flagged:
        job.count("judge_flagged_items", dict(list(flagged.items())[:FLAGGED_SHOWN]))
        job.note(
            f"{len(flagged)} judged items have texts with markup, chat markers, hidden characters or words that address the"
            " judge; they were judged as data, look at them: " + ", ".join(list(flagged)[:5])
        )
    if len(chosen) < len(units):
        job.note(
            f"judge.max_calls={job.settings.judge.max_calls}: {len(units) - len(chosen)} of {len(units)} groups and "
            "pairs were not judged; such groups fall back to the business reward"
        )


def _flagged(wanted: set[str], items: dict[str, tuple[str, str]], engine: Engine) -> dict[str, list[str]]:
    """item_id -> what is suspicious about its text, the most suspicious first."""
    found = {item: flags(items[item][1], engine.rubric.limits.item) for item in wanted}
    return dict(
        sorted(((item, signs) for item, signs in found.items() if signs), key=lambda pair: (-len(pair[1]), pair[0]))
    )


def _groups(job: Job, items: dict[str, tuple[str, str]]) -> tuple[list[Unit], list[Unit]]:
    """The groups to judge, a share ``sampling_ratio`` of those with business variance, and those without variance."""
    columns = ["decision_id", "state_id", "item_id", "business_reward"]
    rows = job.lake.read("candidates", where={"day": job.day}, columns=columns)
    decisions, starts = np.unique(rows["decision_id"].to_numpy(zero_copy_only=False).astype(str), return_index=True)
    states, candidates = rows["state_id"].to_pylist(), rows["item_id"].to_pylist()
    varied = set(varied_groups(rows).to_pylist())
    if unknown := sorted(set(candidates) - items.keys()):
        raise ContractError(
            f"table candidates of {job.day}: {len(unknown)} items are not in the day's items, first {unknown[0]!r}; "
            "re-run tokenize_items and generate_candidates"
        )
    judge = job.settings.judge
    orders = hash_share(decisions.tolist(), f"judge-groups-{judge.seed}")
    needs_every_group = job.settings.fusion.objective in UNGATED
    chosen, without_variance = [], []
    ends = [*starts[1:], len(candidates)]
    for decision, start, end, order in zip(decisions.tolist(), starts, ends, orders.tolist(), strict=True):
        calls = tuple((states[row], candidates[row], items[candidates[row]][0]) for row in range(start, end))
        if not needs_every_group and decision not in varied:
            without_variance.append(Unit(order=order, name=decision, calls=calls))
        elif needs_every_group or order < judge.sampling_ratio:
            # Stretched over [0, 1) again, so that sampled groups and pairs queue side by side.
            order = order if needs_every_group else order / judge.sampling_ratio
            chosen.append(Unit(order=order, name=decision, calls=calls))
    return chosen, without_variance


def _pairs(job: Job, items: dict[str, tuple[str, str]]) -> list[Unit]:
    """At most ``judge.max_pairs`` preference pairs of training users, chosen by seeded hash."""
    states = job.lake.read("user_states", where={"day": job.day, "split": "train"}, columns=["decision_id"])
    train = set(states["decision_id"].to_pylist())
    columns = ["decision_id", "state_id", "preferred_item", "other_item"]
    rows = [
        row
        for row in job.lake.read("preference_pairs", where={"day": job.day}, columns=columns).to_pylist()
        if row["decision_id"] in train and row["preferred_item"] in items and row["other_item"] in items
    ]
    names = [f"{row['decision_id']}/{row['other_item']}" for row in rows]
    orders = hash_share(names, f"judge-pairs-{job.settings.judge.seed}")
    chosen = np.argsort(orders, kind="stable")[: job.settings.judge.max_pairs].tolist()
    return [
        Unit(
            # The rank, not the hash: a small sample of many pairs has only small hashes.
            order=place / len(chosen),
            name=names[number],
            calls=tuple(
                (rows[number]["state_id"], item, items[item][0])
                for item in (rows[number]["preferred_item"], rows[number]["other_item"])
            ),
        )
        for place, number in enumerate(chosen)
    ]


def _affordable(
    job: Job, units: list[Unit], known: set[Call], items: dict[str, tuple[str, str]], version: str
) -> list[Unit]:
    """The units that ``judge.max_calls`` pays for: whole ones, in their order, up to the first that is too dear.

    What earlier runs of this night paid counts, so that a re-run pays nothing more.
    """
    limit = job.settings.judge.max_calls
    if limit is None:
        return units
    # Training on fresh groups may have paid since.
    left = max(0, limit - paid_before(job.lake, job.day, version))
    seen = set(known)
    for number, unit in enumerate(units):
        new = {call for call in unit.calls if call not in seen and items[call[1]][1]}
        if len(new) > left:
            return units[:number]
        left -= len(new)
        seen |= new
    return units


def _score_shards(
    job: Job, shards: list[list[Call]], items: dict[str, tuple[str, str]], engine: Engine, version: str
) -> CallCounts:
    """Score and publish shard after shard."""
    states = day_states(job.lake, job.day, {state for shard in shards for state, _, _ in shard})
    made = CallCounts()
    with job.progress_bar(sum(map(len, shards)), "judging") as advance:
        for shard in shards:
            results = engine.score([request(call, states[call[0]], items) for call in shard])
            made += publish_scores(job.lake, job.day, version, engine.rubric.aspect_ids, shard, results)
            advance(len(shard))
    return made


main = stage_command("score_aspects", run)

if __name__ == "__main__":
    main()
