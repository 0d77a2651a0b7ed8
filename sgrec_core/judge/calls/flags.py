"""Texts that look as if they were written for the judge: read as data all the same, and shown to people."""

from sgrec_core.judge.calls.plan import Plan
from sgrec_core.judge.prompt import flags, texts_of
from sgrec_core.runtime.job import Job

SHOWN = 50
"""Items, and users, with suspicious texts that the morning page lists."""


def tell_flagged(job: Job, plan: Plan) -> None:
    """Facts and notes of ``job`` about suspicious texts among those that the calls of ``plan`` show the judge."""
    items, users = flagged(job, plan)
    for name, found in (("items", items), ("users", users)):
        job.fact(f"judge_flagged_{name}", len(found))
        if found:
            job.fact(f"judge_flagged_{name}_shown", dict(list(found.items())[:SHOWN]))
            job.note(
                f"{len(found)} {name} have texts with markup, chat markers, hidden characters or words that address the"
                " judge; they were read as data, look at them: " + ", ".join(list(found)[:5])
            )


def flagged(job: Job, plan: Plan) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """What is suspicious about texts as they came: by item_id, and by user_id of profile or context; worst first."""
    limits = plan.engine.rubric.limits
    asked = {state for state, _, _ in plan.wanted}
    columns = ["state_id", "user_id", "history", "profile", "context"]
    rows = job.lake.read("user_states", where={"day": job.day}, columns=columns).to_pylist()
    states = [row for row in rows if row["state_id"] in asked]
    read = {item for _, item, _ in plan.wanted} | {item for row in states for item in row["history"]}
    columns = ["item_id", "title", "brand", "category", "description"]
    rows = job.lake.read("items", where={"day": job.day}, columns=columns).to_pylist()
    items = {
        row["item_id"]: flags("\n".join(row[name] for name in columns[1:] if row[name]), limits.item)
        for row in rows
        if row["item_id"] in read
    }
    users: dict[str, list[str]] = {}
    for user, document, limit in sorted(
        {
            (row["user_id"], row[name], limit)
            for row in states
            for name, limit in (("profile", limits.profile), ("context", limits.context))
            if row[name]
        }
    ):
        signs = users.setdefault(user, [])
        signs += [sign for sign in flags(texts_of(document), limit) if sign not in signs]
    return _most_suspicious_first(items), _most_suspicious_first(users)


def _most_suspicious_first(found: dict[str, list[str]]) -> dict[str, list[str]]:
    return dict(
        sorted(((name, signs) for name, signs in found.items() if signs), key=lambda pair: (-len(pair[1]), pair[0]))
    )
