"""The night's judge on demand, for training on fresh groups."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from sgrec_core.errors import JudgeGoneError
from sgrec_core.judge.calls.ledger import Account, kind_of, paid_before
from sgrec_core.judge.calls.requests import Call, day_states, day_texts, have_texts, request
from sgrec_core.judge.calls.scores import CALL, calls_of, publish_scores, scored_and_failed, scores_of_states
from sgrec_core.judge.engines import day_has_context, judge_version, make_engine
from sgrec_core.judge.request import JudgeResult
from sgrec_core.lake import Lake
from sgrec_core.settings import Settings


class CachedJudge:
    """The night's judge on demand: scores that ``aspect_scores`` holds are read, others asked for once.

    What was asked for becomes rows of the table, ``judge.shard_size`` calls a commit; `publish` writes the rest.
    ``judge.max_calls`` stops paying, after what earlier runs of the night paid.
    """

    def __init__(self, settings: Settings, lake: Lake, day: str, state_ids: Iterable[str]) -> None:
        has_context = day_has_context(lake, day)
        self.version = judge_version(settings, has_context)
        self.paid = 0
        self._lake = lake
        self._texts = day_texts(lake, day, settings)
        self._states = day_states(lake, day, state_ids)
        self._engine = make_engine(settings, has_context)
        self.aspects = self._engine.rubric.aspect_ids
        said = scores_of_states(lake, day, self.version, self._states, [*CALL, "day", "failure", "scores"])
        scored, self._failed = scored_and_failed(said, day)
        self._scores: dict[Call, list[float] | None] = {
            call: scores
            for call, scores in zip(calls_of(said), said["scores"].to_pylist(), strict=True)
            if call in scored
        }
        self._account = Account(judge_version=self.version, day=day, kind=kind_of(self._engine))
        self._published, self._seconds = replace(self._engine.usage), 0.0
        self._new: dict[Call, JudgeResult] = {}
        self._shard_size = settings.judge.shard_size
        limit = settings.judge.max_calls
        self._left = float("inf") if limit is None else max(0, limit - paid_before(lake, day, self.version))

    def scores(self, groups: Sequence[tuple[str, Sequence[str]]]) -> np.ndarray:
        """Aspect scores [B, G, A] of groups of items, each of one state.

        NaN where the judge failed, and for whole groups that ``judge.max_calls`` does not pay for or that hold an item
        without text.

        Raises:
            JudgeGoneError: nobody answers any more.
        """
        calls = [[(state, item, self._texts[item][0]) for item in items] for state, items in groups]
        missing: list[Call] = []
        wanted = set(self._scores)
        for group in calls:
            new = sorted({call for call in group if call not in wanted})
            if len(new) <= self._left and have_texts(group, self._texts):
                self._left -= len(new)
                missing += new
                wanted |= set(new)
        if missing:
            started = time.monotonic()
            results = self._engine.score([request(call, self._states[call[0]], self._texts) for call in missing])
            self._seconds += time.monotonic() - started
            self._new |= dict(zip(missing, results, strict=True))
            self._scores |= {call: result.scores for call, result in zip(missing, results, strict=True)}
            unanswered = sum(result.unanswered for result in results)
            self._left += unanswered
            self.paid += len(results) - unanswered
            if self._engine.gone:
                self.publish()
                raise JudgeGoneError(self._engine.gone)
            if len(self._new) >= self._shard_size:
                self.publish()
        unknown = [np.nan] * len(self.aspects)
        return np.array([[self._scores.get(call) or unknown for call in group] for group in calls], dtype=np.float64)

    def publish(self) -> None:
        """Write what was asked for since the last time."""
        if self._new:
            publish_scores(
                self._lake,
                self._account,
                self.aspects,
                self._new,
                usage=self._engine.usage - self._published,
                seconds=self._seconds,
                failed_before=self._failed,
            )
            self._published, self._seconds, self._new = replace(self._engine.usage), 0.0, {}
