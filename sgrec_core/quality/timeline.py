"""When the steps of a night ran, and what they took: seconds, and calls, tokens and GPU hours of the judge."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sgrec_core.lake import Lake
from sgrec_core.lake.queries import ask
from sgrec_core.quality.steps import Step


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stage with its gate on the axis of the night, in percent of its length."""

    left: float
    width: float
    gate: float
    """Width of the gate behind it."""


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """All that ran in this run of the night."""

    began: datetime
    ended: datetime
    worked: float
    """Seconds of stages and gates, added up."""
    spans: dict[str, Span]
    """By stage."""

    @property
    def seconds(self) -> float:
        return (self.ended - self.began).total_seconds()


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the judge took for the day, in whatever runs; one of each kind of engine."""

    kind: str
    calls: int
    prompt: int
    cached: int
    generated: int
    seconds: float

    @property
    def gpu_hours(self) -> float | None:
        """Hours of the engine times its GPUs; None of an engine that takes none."""
        found = re.fullmatch(r"vllm .* (\d+) GPU", self.kind)
        return self.seconds / 3600 * int(found[1]) if found else None


def timeline(stages: Sequence[tuple[Step, Step | None]]) -> Timeline | None:
    """None where nothing has run."""
    ran = [step for pair in stages for step in pair if step and step.started and not step.stale]
    if not ran:
        return None
    began = min(step.started for step in ran if step.started)
    ended = max(_end(step) for step in ran)
    length = (ended - began).total_seconds() or 1.0
    spans = {}
    for step, gate in stages:
        if step.started and not step.stale:
            is_there = gate is not None and gate.started is not None and not gate.stale
            spans[step.name] = Span(
                left=100 * (step.started - began).total_seconds() / length,
                width=100 * (step.seconds or 0.0) / length,
                gate=100 * (gate.seconds or 0.0) / length if gate and is_there else 0.0,
            )
    return Timeline(began=began, ended=ended, worked=sum(step.seconds or 0.0 for step in ran), spans=spans)


def costs(lake: Lake, day: str) -> list[Cost]:
    """Of the calls that were made for ``day``, without those about labels."""
    question = f"""
        SELECT kind, sum(asked - unanswered) AS calls, sum(prompt) AS prompt, sum(cached) AS cached,
            sum(generated) AS generated, sum(seconds) AS seconds
        FROM rows WHERE day = '{day}' AND purpose = 'night' GROUP BY kind ORDER BY kind
    """
    return [Cost(**row) for row in ask(lake, "judge_ledger", question)]


def _end(step: Step) -> datetime:
    assert step.started is not None, "it ran"
    return step.started + timedelta(seconds=step.seconds or 0.0)
