"""How long the pages of 30 nights take, and how large they are: ``python -m benchmarks.pages [--home FOLDER]``.

The nights are invented, with 2,048 judged groups of 16 candidates and all metrics that are declared. Everything counts
that a report does but the Data Docs: reading the tables, the first cause, the page, the summary, the calendar.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.report import Claim, write
from sgrec_core.files import write_json
from sgrec_core.lake import Lake, load_contract
from sgrec_core.lake.glance import Glance
from sgrec_core.quality.gates import RAW_LOGS
from sgrec_core.quality.history import Figure
from sgrec_core.quality.measures import Measured
from sgrec_core.quality.night_metrics import _row, banded, declared
from sgrec_core.quality.report import write_report
from sgrec_core.quality.validation import Check, TableResult, result_path
from sgrec_core.runtime.runs import Run, record
from sgrec_core.runtime.stages import STAGES
from sgrec_core.settings import RAN_WITH, Settings

FIRST = date(2026, 1, 5)
ASPECTS = ["relevance", "quality", "price", "novelty", "trust"]
GROUP = 16
WORDS = ("Blue", "Kettle", "Steel", "Wool", "Lamp", "Desk", "Garden", "Chair", "Trail", "Glass")
WORKED = {"ingest_events": 14, "build_states": 9, "train_supervised": 31, "score_aspects": 26, "train_generator": 22}
"""Seconds of the stages that take long."""
MIDDLES = {
    "items": 400, "raw_rows": 116_106, "rejected_share": 0.0049, "events": 30_214, "users": 1_512, "click_rate": 0.05,
    "supervised_ndcg": 0.0839, "states": 4_096, "pairs": 9_120, "seen_before": 0,
}  # fmt: skip
"""What some metrics are about; others are 0.5."""
GOOD, OUT_OF_BAND, AT_GATE, CRASHED = "good", "out of band", "at gate", "crashed"


def invent_nights(settings: Settings, ends: list[str], *, groups: int, attack: str = "") -> list[str]:
    """Nights of days one after the other, each of which ends as ``ends`` says; return the days.

    Args:
        groups: judged groups of 16 candidates in each night.
        attack: put into texts that come from outside.
    """
    lake, random = Lake(settings.lake_root), np.random.default_rng(0)
    past: dict[tuple[str, str], list[tuple[str, Figure]]] = {}
    days = [(FIRST + timedelta(days=index)).isoformat() for index in range(len(ends))]
    for day, end in zip(days, ends, strict=True):
        _publish(lake, day, _rows(date.fromisoformat(day), random, groups, attack))
        _metrics(settings, lake, day, past, is_out=end == OUT_OF_BAND)
        _runs(settings, lake, day, end)
    return days


def _publish(lake: Lake, day: str, tables: dict[str, list[dict[str, Any]]]) -> None:
    for name, rows in tables.items():
        contract = load_contract(name)
        table = pa.Table.from_pylist(rows, schema=contract.arrow_schema)
        if "day" in contract.partition_by and "judge_version" not in contract.partition_by:
            lake.publish(name, table, partition={"day": day}, fingerprint="0" * 32)
        else:
            lake.upsert(name, table)


def _rows(day: date, random: np.random.Generator, groups: int, attack: str) -> dict[str, list[dict[str, Any]]]:
    noon = datetime.combine(day, datetime.min.time(), UTC) + timedelta(hours=12)
    items = [f"i{index}" for index in range(400)]
    titles = {
        item: f"{WORDS[index % 10]} {WORDS[index // 10 % 10]} {index} {attack}" for index, item in enumerate(items)
    }
    calls = [
        (f"{day}-s{group}", items[(group * 7 + rank * 3) % 400], rank)
        for group in range(groups)
        for rank in range(GROUP)
    ]
    scores = np.clip(random.normal(0.1, 0.4, (len(calls), len(ASPECTS))), -1, 1).round(3).tolist()
    evaluations = [
        ("sgrec-supervised", "5", "supervised", "ndcg", 0.0839, 0.0711, 0.0955),
        ("sgrec-supervised", "5", "supervised", "hit_rate", 0.1662, 0.1468, 0.1899),
        ("sgrec-generator", "3", "optimised", "ndcg", 0.0805, 0.0662, 0.0946),
        ("sgrec-generator", "2", "champion", "ndcg", 0.0798, 0.0657, 0.0941),
        ("popularity", str(day), "popularity", "ndcg", 0.0237, 0.0102, 0.0346),
    ]
    return {
        "items": [
            {"day": day, "item_id": item, "title": titles[item], "description": None, "brand": "b", "category": "c",
             "price": 9.5, "supplied_codes": None, "item_hash": item}
            for item in items
        ],
        "users": [{"day": day, "user_id": f"u{group}", "profile": '{"age": 30}'} for group in range(groups)],
        "events": [
            {"day": day, "role": "logged", "event_id": f"e{group}", "event_time": noon, "user_id": f"u{group}",
             "item_id": items[group % 400], "event_type": "click", "request_id": f"r{group}", "placement": "home",
             "position": 0, "price": 9.5, "bid": 0.2, "propensity": 0.05}
            for group in range(groups)
        ],
        "events_rejected": [
            {"day": day, "record": "event", "reason": reason, "detail": f"not valid {attack}", "line": line, "part": 0,
             "file": "events/part-0.jsonl", "raw_text": '{"event_id": "e1", ' + attack}
            for line, reason in enumerate(["invalid_json"] * 40 + ["unknown_item"] * 20)
        ],
        "ingest_files": [
            {"day": day, "path": path, "record": record, "bytes": 100_000, "bytes_consumed": 100_000, "format": "jsonl",
             "compression": None, "rows_seen": 1000, "rows_used": 1000, "rows_empty": 0, "rows_accepted": 990,
             "rows_rejected": 10, "rows_unread": 0, "ended": "complete", "detail": None}
            for path, record in (("events/part-0.jsonl", "event"), ("catalogue/c.jsonl", "item"))
        ],
        "user_states": [
            {"day": day, "decision_id": f"{day}-d{group}", "state_id": f"{day}-s{group}", "user_id": f"u{group}",
             "request_id": f"r{group}", "as_of": noon, "split": "train" if group else "validation",
             "history": items[group % 390 : group % 390 + 6], "profile": None, "context": None,
             "target_item": items[1], "target_type": "click", "position": 0}
            for group in range(groups)
        ],
        "candidates": [
            {"day": day, "decision_id": state.replace("-s", "-d"), "state_id": state, "rank": rank, "item_id": item,
             "log_probs": [-1.0, -0.5, -0.1], "business_reward": 1.0, "policy_version": "1", "tokenizer_version": "t1",
             "business_version": "1"}
            for state, item, rank in calls
        ],
        "aspect_scores": [
            {"judge_version": "j1", "day": day, "state_id": state, "item_id": item, "item_hash": item,
             "aspects": ASPECTS, "scores": of_call, "probabilities": None, "format_mass": None,
             "evidence": f"Fits what the user looked at. {attack}", "failure": None}
            for (state, item, _), of_call in zip(calls, scores, strict=True)
        ],
        "rewards": [
            {"day": day, "reward_version": "v1", "decision_id": state.replace("-s", "-d"), "state_id": state,
             "rank": rank, "item_id": item, "judged": True, "aspects": ASPECTS, "scores": of_call,
             "weights": [0.2] * len(ASPECTS), "holistic": sum(of_call) / len(ASPECTS), "business_reward": 1.0,
             "business_advantage": 0.5, "semantic_advantage": 0.5, "gate": 0.2, "advantage": 0.6,
             "code_advantages": None}
            for (state, item, rank), of_call in zip(calls, scores, strict=True)
        ],
        "judge_versions": [{"judge_version": "j1", "facts": "{}", "rubric": "aspects: []"}],
        "judge_ledger": [
            {"judge_version": "j1", "entry_id": f"{day}-{shard}", "written": noon, "day": day, "purpose": "night",
             "worker": "", "kind": "vllm tiny score 1 GPU", "asked": len(calls) // 4, "unanswered": 0, "failed": 0,
             "format_measured": 0, "left_format": 0.0, "prompt": 400 * len(calls) // 4, "cached": 90 * len(calls) // 4,
             "generated": 12 * len(calls) // 4, "seconds": 450.0, "states": b"", "sgrec_version": "0.1.0"}
            for shard in range(4)
        ],
        "evaluations": [
            {"day": day, "model": model, "model_version": version, "role": role, "split": "validation", "users": 146,
             "metric": metric, "cutoff": 10, "bucket": "all", "value": value, "lower": lower, "upper": upper}
            for model, version, role, metric, value, lower, upper in evaluations
        ],
    }  # fmt: skip


def _metrics(settings: Settings, lake: Lake, day: str, past: Any, *, is_out: bool) -> None:
    random = np.random.default_rng(int(day.replace("-", "")))
    found = []
    for metric, dimension in declared().figures:
        middle = float(MIDDLES.get(metric, 0.5))
        value = middle * random.normal(1, 0.02)
        if is_out and metric == "events":
            value *= 0.3
        found.append(Measured(metric=metric, dimension=dimension, figure=Figure(value=value, error=0.01 * middle)))
    by_stage: dict[str, list[dict[str, Any]]] = {}
    for metric_of, measured, band_of in banded(found, past, day):
        row = _row(settings, day, metric_of, measured, band_of)
        by_stage.setdefault(row["stage"], []).append(row)
        if row["status"] != "out":
            past.setdefault((measured.metric, measured.dimension), []).insert(0, (day, measured.figure))
    for stage, rows in by_stage.items():
        table = pa.Table.from_pylist(rows, schema=load_contract("night_metrics").arrow_schema)
        lake.publish("night_metrics", table, partition={"day": day, "stage": stage}, fingerprint="0" * 32)


FACTS: dict[str, dict[str, Any]] = {
    "ingest_events": {"rows_in": 116_106, "rows_accepted": 115_534, "rows_rejected": 572, "events_click": 5_011},
    "train_supervised": {"steps": 400, "loss": 2.31456, "warm_started_from": "sgrec-generator version 2"},
    "score_aspects": {
        "judge_engine": "vllm", "judge_version": "j1", "judge_asked": 32_278, "judge_cached": 0, "judge_skipped": 0,
        "judge_unaffordable": 0, "judge_paid": 32_278, "judge_failed": 1, "judge_drift": {"quality": 0.0123},
        "judge_flagged_items": 1, "judge_flagged_items_shown": {"i3": ["markup", "chat marker"]},
        "judge_flagged_users": 1, "judge_flagged_users_shown": {"u2": ["instruction"]},
    },
    "materialize_rewards": {
        "agreement_rate": 0.5028, "mean_gate": 0.23, "groups": 2048, "groups_with_business_variance": 2048,
        "covered_groups": 2048, "advantage_growth": 0.04,
    },
    "evaluate_generator": {
        "promoted": False, "reason": "optimised policy not better: NDCG@10 0.0805 against 0.0839", "serves": None,
    },
}  # fmt: skip


def _runs(settings: Settings, lake: Lake, day: str, end: str) -> None:
    """Runs of the stages and gates, validations of the gates, and the settings of the night."""
    moment = datetime.fromisoformat(day).replace(tzinfo=UTC) + timedelta(days=1, hours=2)
    write_json(settings.reports(day) / RAN_WITH, settings.assignments())
    runs: list[Run] = []
    for stage in STAGES[:-1]:
        crashes = end == CRASHED and stage.name == "score_aspects"
        fails = end == AT_GATE and stage.name == "build_states"
        for name in (stage.name, f"check_{stage.name}") if stage.publishes else (stage.name,):
            is_gate = name.startswith("check_")
            if is_gate:
                tables = [*stage.publishes, RAW_LOGS] if stage.name == "ingest_events" else stage.publishes
                for table in tables:
                    _result(day, table, fails=fails and table == "user_states").write(
                        result_path(settings.reports(day), table)
                    )
            state = "failed" if (crashes and not is_gate) or (fails and is_gate) else "finished"
            run = Run(day=day, stage=name, input=settings.input, started=moment, git_revision="f" * 40)
            seconds = 0.8 if is_gate else float(WORKED.get(stage.name, 4))
            message = "MemoryError: 3.1 GiB" if crashes else "2 checks failed" if state == "failed" else None
            facts = {} if is_gate or state == "failed" else FACTS.get(name, {})
            digest = f"c{day}" if stage.name == "train_generator" and day.endswith("8") else "c1"
            ended = {"seconds": seconds, "message": message, "facts": facts, "code_digest": digest}
            runs += [run, replace(run, sequence=1, state=state, **ended)]
            moment += timedelta(seconds=seconds)
            if state == "failed":
                record(lake, runs)
                return
    record(lake, runs)


def _result(day: str, table: str, *, fails: bool) -> TableResult:
    contract = load_contract("events" if table == RAW_LOGS else table)
    checks = [
        Check(name="not null", column=column.name, severity="critical", success=True, observed="as expected",
              expected="a value")
        for column in contract.columns
    ]  # fmt: skip
    if fails:
        samples = [{"decision_id": f"{day}-d{index}", "user_id": None} for index in range(5)]
        checks[2] = replace(
            checks[2], column="user_id", success=False, observed="user_id=None", unexpected_count=140,
            unexpected_share=140 / 2048, sample_rows=samples,
        )  # fmt: skip
    return TableResult(
        table=table, day=day, rows=2048, owner=contract.owner, runbook=contract.runbook.replace("{day}", day),
        checks=checks,
    )  # fmt: skip


def ends_of_a_month(nights: int = 30) -> list[str]:
    """Mostly good nights. Those behind one out of band would be amber, for they learn from it: it is the last."""
    ends = [GOOD] * nights
    ends[-6:] = [GOOD, AT_GATE, CRASHED, GOOD, GOOD, OUT_OF_BAND]
    return ends


def measured(settings: Settings, days: list[str], lake: Glance | None) -> tuple[float, float, int]:
    """Seconds and processor seconds of all pages of ``days`` and the calendar; bytes of the largest page."""
    began, worked = time.perf_counter(), time.process_time()
    pages = [write_report(settings, day, lake=lake)[1] for day in days]
    largest = max(page.stat().st_size for page in pages)
    return time.perf_counter() - began, time.process_time() - worked, largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, help="keep the nights in this folder, to look at their pages")
    parser.add_argument("--short", action="store_true", help="few rows: a check in a minute")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=arguments.home or Path(folder), input="simulator")
        days = invent_nights(settings, ends_of_a_month(), groups=64 if arguments.short else 2048)
        write_report(settings, days[0])  # imports, and templates that are compiled once
        seconds, worked, largest = measured(settings, days, Glance(settings.lake_root))
        alone, worked_alone, _ = measured(settings, days, None)
        calendar = (settings.home / "reports" / "index.html").stat().st_size
    claims = [
        Claim(
            name="30 nights, tables opened once", value=seconds, interval=None, unit="s", goal="5 s", met=seconds < 5
        ),
        Claim(name="of it on processors", value=worked, interval=None, unit="s", goal="", met=None),
        Claim(name="30 nights, each opens its tables", value=alone, interval=None, unit="s", goal="", met=None),
        Claim(name="of it on processors, each alone", value=worked_alone, interval=None, unit="s", goal="", met=None),
        Claim(
            name="largest page", value=largest / 1000, interval=None, unit="kB", goal="1 MB", met=largest < 1_000_000
        ),
        Claim(name="calendar", value=calendar / 1e3, interval=None, unit="kB", goal="1 MB", met=calendar < 1e6),
    ]
    for claim in claims:
        print(f"{claim.name}: {claim.value:.4g} {claim.unit}")
    if not arguments.short and not arguments.home:
        write("pages", claims, seeds=[0], text=" ".join((__doc__ or "").split("\n\n", 1)[1].split()), details={})


if __name__ == "__main__":
    main()
