"""A small home made by hand: days of a world in which the next item can be learnt, for the generator's stages.

Stages before them (tokenizer, business model, judge, aggregator) are stood in for by the rows that they publish.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from stage_runs import last_run

import jobs.evaluate_generator
import jobs.generate_candidates
import jobs.materialize_rewards
import jobs.train_generator
import jobs.train_supervised
from sgrec_core.hashing import is_validation_user
from sgrec_core.judge.engines import judge_version
from sgrec_core.lake import Lake, load_contract
from sgrec_core.registry import Registry
from sgrec_core.runtime.job import Job
from sgrec_core.runtime.stages import BUSINESS_REWARD, TOKENIZER
from sgrec_core.settings import Settings

DAY, NEXT_DAY = "2026-01-05", "2026-01-06"
ITEMS, LEVELS, CODES = 48, 3, 4
SHARE = 0.13
"""Of the 70 users, held out: ten of them."""
ASPECTS = ["s0", "s1", "s2"]
STAGES: dict[str, Callable[[Job], None]] = {
    "train_supervised": jobs.train_supervised.run,
    "generate_candidates": jobs.generate_candidates.run,
    "materialize_rewards": jobs.materialize_rewards.run,
    "train_generator": jobs.train_generator.run,
    "evaluate_generator": jobs.evaluate_generator.run,
}


def item(number: int) -> str:
    return f"i{number % ITEMS:02d}"


def world_settings(home: Path, **changes: Any) -> Settings:
    sections: dict[str, dict[str, Any]] = {
        "supervised": {"width": 32, "heads": 2, "epochs": 40, "warm_epochs": 2, "learning_rate": 5e-3, "dropout": 0.0},
        "rollout": {"group_size": 6, "max_groups": 40},
        "states": {"validation_share": SHARE},
        "evaluation": {"beam": 50, "bootstrap_samples": 100, "least_users": 5},
    }
    for section, values in changes.items():
        sections[section] = {**sections.get(section, {}), **values}
    return Settings(home=home, threads=1, **sections)


def publish(lake: Lake, table: str, rows: list[dict[str, Any]], **partition: str) -> None:
    schema = pa.schema([field.with_nullable(True) for field in load_contract(table).arrow_schema])
    lake.publish(table, pa.Table.from_pylist(rows, schema=schema), partition=partition, fingerprint=f"{len(rows):032x}")


def round_the_circle(day: str, user: int) -> list[int]:
    """A day's walk of a user, from item to item in steps of one."""
    start = 7 * user + date.fromisoformat(day).day
    return [start + step for step in range(6)]


def held_out_users(share: float = SHARE) -> list[str]:
    """Of the 70 users."""
    every = [f"u{user:02d}" for user in range(70)]
    return np.array(every)[is_validation_user(every, share)].tolist()


def write_day(
    lake: Lake, day: str, walk: Callable[[str, int], list[int]] = round_the_circle, share: float = SHARE
) -> None:
    """70 users walk by ``walk`` (day and user to six items); a ``share`` of them is held out, as nights do."""
    held_out = set(held_out_users(share))
    the_day = date.fromisoformat(day)
    publish(
        lake,
        "items",
        [{"day": the_day, "item_id": item(n), "title": f"item {n}", "item_hash": f"h{n}"} for n in range(ITEMS)],
        day=day,
    )
    states, labels = [], []
    for user in range(70):
        steps = walk(day, user)
        for position in range(4):
            history = [item(step) for step in steps[: position + 1]]
            at = datetime.combine(the_day, datetime.min.time(), UTC) + timedelta(minutes=position)
            states.append(
                {
                    "day": the_day,
                    "decision_id": f"d{user:02d}-{position}-{day}",
                    "state_id": f"s{user:02d}-{position}-{day}",
                    "user_id": f"u{user:02d}",
                    "request_id": f"r{position}",
                    "as_of": at,
                    "split": "validation" if f"u{user:02d}" in held_out else "train",
                    "history": history,
                    "target_item": item(steps[position + 1]),
                    "target_type": "click",
                    "position": position,
                }
            )
            for role, step in (("logged", position), ("test", 5)):
                if role == "logged" or position == 3:
                    labels.append(
                        {"day": the_day, "role": role, "event_id": f"{user}-{role}-{position}", "event_time": at,
                         "user_id": f"u{user:02d}", "item_id": item(steps[step]), "event_type": "click",
                         "request_id": f"r{position}"}
                    )  # fmt: skip
    publish(lake, "user_states", states, day=day)
    publish(lake, "events", labels, day=day)


def write_scores(settings: Settings, day: str) -> None:
    """The judge and the aggregator in one: scores by item number, all weight on the first aspect."""
    lake = Lake(settings.lake_root)
    candidates = lake.read("candidates", where={"day": day}).to_pylist()
    lake.upsert(
        "aspect_scores",
        pa.Table.from_pylist(
            [
                {
                    "judge_version": judge_version(settings, False),
                    "day": date.fromisoformat(day),
                    "state_id": row["state_id"],
                    "item_id": row["item_id"],
                    "item_hash": f"h{int(row['item_id'][1:])}",
                    "aspects": ASPECTS,
                    "scores": [int(row["item_id"][1:]) / ITEMS, 0.5, 0.5],
                    "evidence": None,
                    "failure": None,
                }
                for row in candidates
                # One group lacks the scores of one candidate, and is therefore not judged.
                if row["decision_id"] != candidates[0]["decision_id"] or row["rank"]
            ],
            schema=load_contract("aspect_scores").arrow_schema,
        ),
    )
    weights = [
        {
            "day": date.fromisoformat(day),
            "state_id": state,
            "aggregator_version": "1",
            "aspects": ASPECTS,
            "weights": [1, 0, 0],
        }
        for state in sorted({row["state_id"] for row in candidates})
    ]
    publish(lake, "user_weights", weights, day=day)


def start_day(
    settings: Settings,
    day: str,
    walk: Callable[[str, int], list[int]] = round_the_circle,
    share: float = SHARE,
) -> str:
    """What the stages before these have made for a day, in a world that has its tokenizer; see `write_day`."""
    registry = Registry(settings)
    write_day(Lake(settings.lake_root), day, walk, share)
    registry.set_alias(registry.versions(TOKENIZER)[0], f"night-{day}")
    nothing = {"nothing": torch.zeros(1)}
    registry.register(BUSINESS_REWARD, day=day, fingerprint=day, tensors=nothing, config={"kind": "ranking"})
    return day


def run_stage(settings: Settings, stage: str, day: str, *, force: bool = False) -> dict[str, Any]:
    job = Job(stage, day, settings, force=force)
    assert job.execute(STAGES[stage], Console(quiet=True)) == 0, job.reports
    return last_run(settings, day, stage)


def run_day(settings: Settings, day: str, *, force: bool = False) -> dict[str, dict[str, Any]]:
    reports = {}
    for stage in STAGES:
        if stage == "materialize_rewards" and not force:
            write_scores(settings, day)
        reports[stage] = run_stage(settings, stage, day, force=force)
    return reports


def new_world(home: Path, **changes: Any) -> Settings:
    """A home with its tokenizer and no day yet; ``changes`` of the settings by section."""
    settings = world_settings(home, **changes)
    lake, registry = Lake(settings.lake_root), Registry(settings)
    codes = np.stack(np.unravel_index(np.arange(ITEMS), (CODES,) * LEVELS), axis=1)
    rows = [
        {"tokenizer_version": "t1", "item_id": item(n), "item_hash": f"h{n}", "codes": codes[n].tolist()}
        for n in range(ITEMS)
    ]
    lake.upsert("item_codes", pa.Table.from_pylist(rows, schema=load_contract("item_codes").arrow_schema))
    nothing = {"nothing": torch.zeros(1)}
    tokenizer = {"tokenizer_version": "t1", "codebook_size": CODES, "levels": LEVELS}
    registry.register(TOKENIZER, day=DAY, fingerprint="a" * 32, tensors=nothing, config=tokenizer)
    return settings
