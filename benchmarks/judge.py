"""What batching and shared prompts save the judge: one vLLM engine, the same calls in both ways, in turn.

    python -m benchmarks.judge [--short] [--data ../shared/data]      # in the judge's environment

A: `sgrec_core.judge` as the pipeline runs it: a shard at once, ordered by user state and item, common parts of prompts
computed once. B: one request at a time, and no two requests share anything (the prefix cache is emptied before each).
The same prompts, the same model (the tiny one made on the spot; its scores mean nothing, the token counts are those
that any model of its tokenizer would have). Repetitions alternate in one process; the ratio of each pair is reported
with its spread.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Claim, write
from sgrec_core.errors import SgrecError
from sgrec_core.judge.engines import LanguageModelEngine
from sgrec_core.judge.engines.backends import Backend, Chat, Failed
from sgrec_core.judge.request import JudgeRequest
from sgrec_core.judge.rubric import load_rubric
from sgrec_core.logs.adaptors import parse_source, read_public_set
from sgrec_core.settings import JudgeSettings, Settings

GROUP = 16
HISTORY = 10
GOALS = {"speed": 5.0, "computed": 30.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer calls and repetitions")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the public sets")
    parser.add_argument("--output", type=Path, help="folder of the results; benchmarks/results by default")
    options = parser.parse_args()
    states, repetitions = (4, 2) if options.short else (32, 5)
    calls = requests(item_texts(options.data), states)
    claims, details = [], {}
    with tempfile.TemporaryDirectory() as home:
        backend = None
        for mode in ("labels", "reasoning"):
            judge = JudgeSettings(engine="vllm", mode=mode, reasoning_characters=64, format_sample=0.0)
            engine = LanguageModelEngine(Settings(home=Path(home), threads=1, judge=judge), load_rubric(False))
            engine.backend = backend = backend or engine.backend
            found, facts = compare(engine, calls if mode == "labels" else calls[: len(calls) // 4], repetitions)
            claims += found
            details[mode] = facts
    text = (
        f"{len(calls)} calls in mode labels, a quarter of them in mode reasoning (64 characters): {states} user states,"
        f" groups of {GROUP}, histories of {HISTORY} items of Amazon Scientific (made-up titles where the set is"
        f" absent). One engine, vLLM's CPU build, one thread. Intervals are the range over {repetitions} alternating"
        f" repetitions."
    )
    name = "judge" + ("-short" if options.short else "")
    print(write(name, claims, seeds=[0], text=text, details=details, folder=options.output).read_text())


def compare(engine: LanguageModelEngine, calls: list[JudgeRequest], repetitions: int) -> tuple[list[Claim], dict]:
    """Claims of one mode: pairs per second of both ways, share of the prompt tokens computed, agreement."""
    engine.score(calls[:2])
    single = copy.copy(engine)
    single.backend = OneByOne(engine.backend)
    # One at a time takes long: a sample of whole states, its speed per pair is the same.
    sample = calls[: max(GROUP, len(calls) // 8)]
    speed: dict[str, list[float]] = {"together": [], "one by one": []}
    usage = {}
    for _ in range(repetitions):
        before, started = asdict(engine.usage), time.perf_counter()
        together = engine.score(calls)
        speed["together"].append(len(calls) / (time.perf_counter() - started))
        usage["together"] = {name: value - before[name] for name, value in asdict(engine.usage).items()}
        before, started = asdict(engine.usage), time.perf_counter()
        alone = single.score(sample)
        speed["one by one"].append(len(sample) / (time.perf_counter() - started))
        usage["one by one"] = {name: value - before[name] for name, value in asdict(engine.usage).items()}
    ratio = np.array(speed["together"]) / np.array(speed["one by one"])
    computed = 100 * (1 - usage["together"]["cached"] / usage["together"]["prompt"])
    apart = max(
        abs(a - b)
        for mine, theirs in zip(together, alone, strict=False)
        for a, b in zip(mine.scores, theirs.scores, strict=True)
    )
    mode = engine.mode

    def timed(name: str, values: np.ndarray | list[float], unit: str, goal: float | None = None) -> Claim:
        middle = float(np.median(values))
        return Claim(
            name=f"{name}, mode {mode}",
            value=middle,
            interval=(float(min(values)), float(max(values))),
            unit=unit,
            goal="" if goal is None else f">= {goal:g}",
            met=None if goal is None else middle >= goal,
        )

    return [
        timed("pairs per second, a shard at once", speed["together"], "pairs/s"),
        timed("pairs per second, one request at a time", speed["one by one"], "pairs/s"),
        timed("a shard at once against one request at a time", ratio, "times", GOALS["speed"]),
        Claim(
            name=f"prompt tokens computed, mode {mode}",
            value=computed,
            interval=None,
            unit="%",
            goal=f"<= {GOALS['computed']:g}",
            met=computed <= GOALS["computed"],
        ),
        Claim(
            name=f"largest difference of a score between the two ways, mode {mode}",
            value=apart,
            interval=None,
            unit="",
            goal="<= 0.001" if mode == "labels" else "",
            met=apart <= 0.001 if mode == "labels" else None,
        ),
    ], {"speed": speed, "usage": usage}


class OneByOne:
    """A backend that asks about one chat at a time; each call of ``backend`` begins with an empty prefix cache."""

    def __init__(self, backend: Backend):
        self.backend = backend
        self.usage, self.tokens, self.fits, self.gone = backend.usage, backend.tokens, backend.fits, backend.gone

    def label_log_probs(
        self, chats: Sequence[Chat], labels: Sequence[Sequence[str]]
    ) -> list[dict[str, float] | Failed]:
        pairs = zip(chats, labels, strict=True)
        return [self.backend.label_log_probs([chat], [of_chat])[0] for chat, of_chat in pairs]

    def complete(self, chats: Sequence[Chat], schema: dict[str, Any] | None, max_tokens: int) -> list[str | Failed]:
        return [self.backend.complete([chat], schema, max_tokens)[0] for chat in chats]


def item_texts(folder: Path) -> list[str]:
    try:
        items = read_public_set(parse_source(f"scientific:{folder / 'scientific'}")).items
        return [text for row in items if (text := f"{row['title'] or ''}. {row['description'] or ''}".strip(". "))]
    except SgrecError:
        colours, things = ("red", "blue", "green", "white"), ("lamp", "desk", "drill", "tent", "kettle", "caliper")
        return [
            f"{colour} {thing} of {size} centimetres, with manual"
            for colour in colours
            for thing in things
            for size in range(9)
        ]


def requests(texts: list[str], states: int) -> list[JudgeRequest]:
    """Groups of 16 candidates, a group a state."""
    draw = np.random.default_rng(0)
    calls = []
    for state in range(states):
        history = tuple(texts[number] for number in draw.integers(len(texts), size=HISTORY))
        for item in draw.choice(len(texts), GROUP, replace=False).tolist():
            calls.append(
                JudgeRequest(
                    state_id=f"state-{state}",
                    item_id=f"item-{item}",
                    item_hash="",
                    history_texts=history,
                    profile=None,
                    context=None,
                    item_text=texts[item],
                )
            )
    return calls


if __name__ == "__main__":
    main()
