"""What test_judge_vllm.py asserts on, measured in the judge's own environment: run by its interpreter, prints JSON.

Usage: python vllm_probe.py HOME   (a folder for SGREC_HOME)
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from attacks import ATTACKS
from judged_night import DAY, publish_night

from jobs import score_aspects
from sgrec_core.judge.engines import judge_version, make_engine
from sgrec_core.judge.request import JudgeRequest
from sgrec_core.runtime.job import Job
from sgrec_core.settings import JudgeSettings, Settings


def request(number: int, item_text: str, **changes) -> JudgeRequest:
    fields = {
        "state_id": f"state-{number // 16}",
        "item_id": f"item-{number}",
        "item_hash": "hash",
        "history_texts": tuple(f"thing {step}" for step in range(number // 16)),
        "profile": json.dumps({"age": 20 + number // 16}),
        "context": None,
        "item_text": item_text,
    }
    return JudgeRequest(**{**fields, **changes})


def main(home: Path) -> None:
    limits = {"engine": "vllm", "kv_cache_gib": 0.5}
    settings = Settings(home=home, threads=1, judge=JudgeSettings(**limits))
    engine = make_engine(settings, has_context=True)
    report: dict = {"judge_version": judge_version(settings, True)}

    started = time.perf_counter()
    engine.score([request(0, "a lamp")])
    report["start_seconds"] = time.perf_counter() - started

    requests = [request(number, f"item number {number}") for number in range(64)]
    started = time.perf_counter()
    report["labels"] = [asdict(result) for result in engine.score(requests)]
    report["requests_per_second"] = len(requests) / (time.perf_counter() - started)
    report["usage"] = asdict(engine.usage)
    report["again"] = [asdict(result) for result in engine.score(requests)]
    hostile = [request(number, text) for number, (_, text) in enumerate(ATTACKS)]
    report["hostile_labels"] = [asdict(result) for result in engine.score(hostile)]
    report["special_tokens"] = special_tokens(engine, hostile[0], *hostile)

    # A second engine beside the first: the same model in the other mode.
    reasoning = make_engine(
        Settings(
            home=home,
            threads=1,
            judge=JudgeSettings(**limits, mode="reasoning", reasoning_characters=24, format_sample=0.25),
        ),
        has_context=True,
    )
    reasoning.backend = engine.backend
    report["reasoning"] = [asdict(result) for result in reasoning.score(requests[:16])]
    report["hostile_reasoning"] = [asdict(result) for result in reasoning.score(hostile)]
    # An answer cut off in the middle is what a model that leaves the format would give.
    reasoning.max_tokens = 5
    report["cut_off"] = [asdict(result) for result in reasoning.score([request(0, "a lamp")])]

    long = request(1, "a lamp", history_texts=("𠀀" * 1000,) * 20)
    too_long = request(1, "𠀀" * 100_000, profile=json.dumps({"likes": "𠀀" * 3000}))
    report["mixed"] = [
        asdict(result) for result in engine.score([request(0, "a lamp"), long, too_long, request(2, " ")])
    ]

    lake = publish_night(settings, groups=4, flat_groups=1)
    for name in ("first_run", "second_run"):
        job = Job("score_aspects", DAY, settings)
        score_aspects.run(job)
        report[name] = {"facts": job.facts, "notes": job.notes, "table_version": lake.version("aspect_scores")}
    report["rows"] = lake.read("aspect_scores").to_pylist()
    print(json.dumps(report, default=str))


def special_tokens(engine, *requests: JudgeRequest) -> list[int]:
    """How many special tokens (turn markers) the prompt of each request has."""
    backend = engine.backend
    special = set(backend._tokenizer._load().all_special_ids)
    return [
        sum(token in special for token in backend.tokens(engine._chat(asked, "Which level?"))) for asked in requests
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
