"""A night of a few rows, run through the real job harness, lake and gates, with stages that only publish and count.

It stands in for the stages' computation where a test is about what gates and report make of a night.
"""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import write_deltalake
from rich.console import Console

from sgrec_core.errors import InputError
from sgrec_core.judge.calls.ledger import Spent
from sgrec_core.judge.engines import judge_version
from sgrec_core.lake import load_contract
from sgrec_core.quality.gates import check_stage
from sgrec_core.runtime.job import Job
from sgrec_core.runtime.stages import STAGES
from sgrec_core.settings import Settings

DAY = "2026-01-05"
USERS, ITEMS, GROUP = 30, 12, 4
ASPECTS = ["s0", "s1", "s2"]
JUDGE_VERSION = judge_version(Settings(), has_context=False)


def rows_of(table: str, day: str = DAY, attack: str = "") -> list[dict[str, Any]]:
    """Valid rows of a table; ``attack`` is put into the texts that come from outside."""
    the_day = date.fromisoformat(day)
    noon = datetime.combine(the_day, datetime.min.time(), UTC) + timedelta(hours=12)
    users, items = range(USERS), range(ITEMS)
    row_bytes = 10_000 if attack else 100  # an attack is a long line: beside it the others are too
    candidates = [
        {"day": the_day, "decision_id": f"d{u}", "state_id": f"s{u}", "rank": r, "item_id": f"i{(u + r) % ITEMS}"}
        for u in users
        for r in range(GROUP)
    ]
    metrics = [
        ("sgrec-supervised", "5", "supervised", "ndcg", 0.0412, 0.0371, 0.0455),
        ("sgrec-supervised", "5", "supervised", "hit_rate", 0.0731, 0.0668, 0.0799),
        ("sgrec-generator", "3", "optimised", "ndcg", 0.0403, 0.0362, 0.0446),
        ("sgrec-generator", "3", "optimised", "hit_rate", 0.0722, 0.0659, 0.0791),
        ("sgrec-generator", "2", "champion", "ndcg", 0.0398, 0.0357, 0.0441),
        ("sgrec-generator", "2", "champion", "hit_rate", 0.0702, 0.0641, 0.0768),
        ("popularity", day, "popularity", "ndcg", 0.0123, 0.0102, 0.0146),
        ("popularity", day, "popularity", "hit_rate", 0.0261, 0.0222, 0.0303),
        ("sgrec-supervised", "5", "supervised", "ecpm_doubly_robust", 212.5, 198.0, 227.25),
        ("sgrec-generator", "2", "champion", "ecpm_doubly_robust", 207.5, 193.0, 222.5),
        ("sgrec-supervised", "5", "supervised", "difference_ndcg", 0.0014, -0.0006, 0.0033),
        ("sgrec-generator", "3", "optimised", "start_difference_ndcg", -0.0009, -0.0026, 0.0008),
    ]
    rows: dict[str, list[dict[str, Any]]] = {
        "events": [
            {"day": the_day, "role": "logged", "event_id": f"e{u}", "event_time": noon, "user_id": f"u{u}",
             "item_id": f"i{u % ITEMS}", "event_type": "click", "request_id": f"r{u}", "placement": "home",
             "position": 0, "price": 9.5, "bid": 0.2, "propensity": 0.05}
            for u in users
        ],
        "events_rejected": [
            {"day": the_day, "record": "event", "reason": "invalid_json", "detail": f"not JSON {attack}",
             "file": "events/part-0.jsonl", "line": 7, "part": 0,
             "raw_text": '{"event_id": "e1", ' + attack},
            {"day": the_day, "record": "event", "reason": "unknown_item",
             "detail": "item_id 'i99' is not in the catalogue", "file": "events/part-0.jsonl", "line": 9, "part": 0,
             "raw_text": '{"event_id": "e2", "item_id": "i99"}'},
        ],
        "ingest_files": [
            {"day": the_day, "path": path, "record": record,
             "bytes": row_bytes * seen, "bytes_consumed": row_bytes * seen,
             "format": "jsonl", "compression": None, "rows_seen": seen, "rows_used": seen, "rows_empty": 0,
             "rows_accepted": accepted, "rows_rejected": seen - accepted, "rows_unread": 0, "ended": "complete",
             "detail": None}
            for path, record, seen, accepted in (
                ("events/part-0.jsonl", "event", 32, 30), ("catalogue/c.jsonl", "item", 12, 12),
                ("profiles/p.jsonl", "user", 30, 30),
            )
        ],
        "items": [
            {"day": the_day, "item_id": f"i{i}", "title": f"item {i} {attack}", "description": None, "brand": "b",
             "category": "c", "price": 9.5, "supplied_codes": None, "item_hash": f"h{i}"}
            for i in items
        ],
        "users": [{"day": the_day, "user_id": f"u{u}", "profile": "{}"} for u in users],
        "user_states": [
            {"day": the_day, "decision_id": f"d{u}", "state_id": f"s{u}", "user_id": f"u{u}", "request_id": f"r{u}",
             "as_of": noon, "split": "train" if u else "validation", "history": ["i0"], "profile": None,
             "context": None, "target_item": "i1", "target_type": "click", "position": 0}
            for u in users
        ],
        "preference_pairs": [
            {"day": the_day, "decision_id": f"d{u}", "state_id": f"s{u}", "preferred_item": "i1", "other_item": "i2",
             "source": "impression"}
            for u in users
        ],
        "item_codes": [
            {"tokenizer_version": "t1", "item_id": f"i{i}", "item_hash": f"h{i}", "codes": [i // 4, i % 4, 0]}
            for i in items
        ],
        "candidates": [
            {**row, "log_probs": [-1.0, -0.5, -0.1], "business_reward": 1.0, "policy_version": "1",
             "tokenizer_version": "t1", "business_version": "1"}
            for row in candidates
        ],
        "aspect_scores": [
            {"judge_version": JUDGE_VERSION, "day": the_day, "state_id": row["state_id"],
             "item_id": row["item_id"], "item_hash": "h",
             "aspects": ASPECTS, "scores": [0.5, 0.0, -0.5], "evidence": attack or None, "failure": None}
            for row in candidates
        ],
        "judge_ledger": [
            {"judge_version": JUDGE_VERSION, "entry_id": f"{day}-1", "written": noon, "day": the_day,
             "purpose": "night", "worker": "", "kind": "embedding", **asdict(Spent()), "asked": len(candidates),
             "states": b"",
             "sgrec_version": "0.1.0"},
        ],
        "judge_versions": [{"judge_version": JUDGE_VERSION, "facts": "{}", "rubric": "aspects: []"}],
        "user_weights": [
            {"day": the_day, "state_id": f"s{u}", "aggregator_version": "1", "aspects": ASPECTS,
             "weights": [0.5, 0.25, 0.25]}
            for u in users
        ],
        "rewards": [
            {**row, "reward_version": "v1", "judged": True, "aspects": ASPECTS, "scores": [0.5, 0.0, -0.5],
             "weights": [0.5, 0.25, 0.25], "holistic": 0.125, "business_reward": 1.0, "business_advantage": 0.5,
             "semantic_advantage": 0.5, "gate": 0.2, "advantage": 0.6}
            for row in candidates
        ],
        "evaluations": [
            {"day": the_day, "model": model, "model_version": version, "role": role, "split": "validation",
             "metric": metric, "cutoff": 10, "bucket": "all", "value": value, "lower": lower, "upper": upper,
             "users": USERS}
            for model, version, role, metric, value, lower, upper in metrics
        ],
        "judge_labels": [
            {"day": the_day, "sample_id": f"l{u}", "user_id": f"u{u}", "split": "train" if u else "validation",
             "source": "human", "history": ["item 1"], "profile": None, "context": None,
             "item_text": f"item 2 {attack}", "aspects": ASPECTS, "labels": ["A", "B", "C"],
             "reasoning": attack or None}
            for u in users
        ],
        "judge_labels_rejected": [
            {"day": the_day, "reason": "missing_field", "detail": "column labels: absent", "file": "labels.jsonl",
             "line": 3, "raw_text": '{"sample_id": "l99"} ' + attack},
        ],
        "stage_runs": [
            {"day": the_day, "folder": "", "stage": stage.name, "run_id": f"r-{stage.name}", "sequence": 1,
             "state": "finished", "started": noon, "seconds": 1.5, "message": None, "facts": "{}", "notes": [],
             "fingerprint": None, "code_digest": None, "tables_read": "{}", "tables_written": "{}",
             "input": "simulator", "sgrec_version": "0.1.0", "git_revision": None}
            for stage in STAGES
        ],
        "night_metrics": [
            {"day": the_day, "stage": "ingest_events", "metric": "events", "dimension": kind, "place": place,
             "value": 30.0, "error": 5.5, "size": None, "low": None, "high": None, "how": "no earlier night to go by",
             "severity": "critical", "status": "no band", "input": "simulator"}
            for place, kind in enumerate(("click", "impression"))
        ],
        "candidate_results": [
            {"day": the_day, "role": role, "model": "sgrec-generator", "model_version": "3", "recipe": "r",
             "user_id": f"u{u}", "decisions": 1, "ndcg": 0.5, "hit_rate": 1.0, "deep_hit_rate": 1.0}
            for u in users
            for role in ("supervised", "optimised")
        ],
        "promotions": [
            {"sequence": 1, "day": the_day, "action": "pin", "model": "sgrec-generator", "version": None,
             "fingerprint": None, "who": f"night {day}", "reason": "first night", "decided_at": noon},
            {"sequence": 2, "day": the_day, "action": "promote", "model": "sgrec-generator", "version": "3",
             "fingerprint": "f3", "who": f"night {day}", "reason": f"better {attack}", "decided_at": noon},
        ],
        "incidents": [
            {"incident": 1, "opened": noon, "kind": "renamed_field", "cause": f"price is cost {attack}",
             "cause_table": "events", "owner": "data-platform", "severity": "critical", "command": "sgrec nightly",
             "first_night": the_day, "last_night": the_day, "nights": 1, "last_good": None, "acknowledged_at": noon,
             "acknowledged_by": "ann", "acknowledged_why": "on it", "resolved_at": None, "resolved_by": None,
             "resolved_why": None, "told": ["webhook"], "told_over": [], "problems": []},
        ],
        "judge_evaluations": [
            {"day": the_day, "candidate_version": "j2", "judge_version": "j2", "role": "candidate",
             "metric": "point_acc", "aspect": aspect, "bucket": "all", "value": 0.61, "lower": 0.55, "upper": 0.66,
             "count": USERS}
            for aspect in ("all", *ASPECTS)
        ],
    }  # fmt: skip
    return rows[table]


def table_of(table: str, rows: list[dict[str, Any]] | None = None) -> pa.Table:
    """Rows (by default the valid ones) as Arrow, without the contract's promise that nothing is null."""
    schema = load_contract(table).arrow_schema
    return pa.Table.from_pylist(
        rows_of(table) if rows is None else rows, schema=pa.schema([f.with_nullable(True) for f in schema])
    )


FACTS: dict[str, dict[str, Any]] = {
    "ingest_events": {"rows_in": 74, "rows_accepted": 72, "rows_rejected": 2},
    "build_states": {"states": USERS, "preference_pairs": USERS},
    "train_supervised": {"steps": 400, "loss": 2.31456, "warm_started_from": "sgrec-generator version 2"},
    "generate_candidates": {
        "groups": 30, "target_rate": 0.1421, "held_out_target_rate": 0.139,
        "rolled_out_by": "sgrec-generator version 2",
    },
    "score_aspects": {
        "judge_engine": "embedding", "judge_version": JUDGE_VERSION, "judge_asked": 120,
        "judge_cached": 20, "judge_skipped": 8, "judge_unaffordable": 0, "judge_paid": 92, "judge_failed": 1,
        "judge_left_format": 0.031, "judge_drift": {"s0": 0.0123, "s1": 0.3}, "judge_flagged_items": 1,
        "judge_flagged_items_shown": {"i<3>": ["markup", "chat marker"]},
        "judge_flagged_users": 2, "judge_flagged_users_shown": {"u</code>": ["instruction"]},
    },
    "materialize_rewards": {
        "agreement_rate": 0.513, "mean_gate": 0.182, "groups": 30, "groups_with_business_variance": 29,
        "covered_groups": 28, "advantage_growth": 0.04,
    },
    "evaluate_generator": {
        "promoted": True, "serves": "supervised", "reason": "NDCG@10 0.0412 against 0.0398 of the champion",
        "values_by": "doubly_robust",
    },
}  # fmt: skip


def run_night(
    settings: Settings,
    day: str = DAY,
    *,
    until: str | None = None,
    fail_at: str | None = None,
    attack: str = "",
    facts: dict[str, dict[str, Any]] | None = None,
    notes: dict[str, list[str]] | None = None,
    before_gate: Callable[[Settings, str], None] | None = None,
) -> None:
    """Run stages and gates in order; stop behind ``until``, when ``fail_at`` fails, or at the first critical check.

    Args:
        facts: by stage, instead of `FACTS`.
        before_gate: called with settings and stage between a stage and its gate, to damage what was published.
    """
    every_fact = {**FACTS, **(facts or {})}
    for stage in STAGES[:-1]:

        def run(job: Job) -> None:
            if job.stage.name == fail_at:
                raise InputError(f"events/part-0.jsonl: cannot be read {attack}")
            for table in job.stage.publishes:
                contract = load_contract(table)
                if "day" in contract.partition_by:
                    job.lake.publish(
                        table,
                        table_of(table, rows_of(table, day, attack)),
                        partition={"day": day},
                        fingerprint="0" * 32,
                    )
                else:
                    job.lake.upsert(table, table_of(table, rows_of(table, day, attack)))
            for name, value in every_fact.get(job.stage.name, {}).items():
                job.fact(name, value)
            for note in (notes or {}).get(job.stage.name, []):
                job.note(note)

        if Job(stage.name, day, settings).execute(run, Console(quiet=True)):
            return
        if before_gate:
            before_gate(settings, stage.name)
        if stage.publishes and check_stage(settings, stage.name, day).state == "failed":
            return
        if stage.name == until:
            return


def damage(settings: Settings, table: str, rows: list[dict[str, Any]]) -> None:
    """Replace a table by one without constraints that holds ``rows``, as a foreign writer could."""
    folder = Path(settings.lake_root) / table
    shutil.rmtree(folder, ignore_errors=True)
    write_deltalake(str(folder), table_of(table, rows), partition_by=list(load_contract(table).partition_by))
