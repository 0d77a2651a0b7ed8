"""Calls to the judge: what one is about, how it is worded from the day's tables, and what is kept of it.

A call is a distinct (state, item, item content); with ``judge_version`` it is the key of ``aspect_scores``.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core.errors import ContractError, JudgeGoneError
from sgrec_core.hashing import hash_share
from sgrec_core.items.encoder import TEXT_LIMIT, item_text
from sgrec_core.judge.engines import Engine, day_has_context, judge_version, make_engine
from sgrec_core.judge.engines.backends import served_model
from sgrec_core.judge.request import JudgeRequest, JudgeResult, Usage
from sgrec_core.judge.rubric import load_rubric
from sgrec_core.lake import Lake
from sgrec_core.settings import Settings

FOR_LABELS = " labels"
"""Ends the day in commits whose calls belong to no night, so that no night's limit is charged."""
Call = tuple[str, str, str]
"""state_id, item_id, item_hash."""
Texts = Mapping[str, tuple[str, str]]
"""item_id -> (item_hash, text)."""


def day_texts(lake: Lake, day: str, settings: Settings) -> dict[str, tuple[str, str]]:
    """Content hash and text of each of the day's items, no longer than the judge reads."""
    limit = TEXT_LIMIT
    if settings.judge.engine != "embedding":
        limits = load_rubric(True, settings.judge.rubric).limits
        limit = max(limits.item, limits.history_entry)
    columns = ["item_id", "item_hash", "title", "brand", "category", "description"]
    rows = lake.read("items", where={"day": day}, columns=columns).to_pylist()
    return {
        row["item_id"]: (
            row["item_hash"],
            item_text(row["title"], row["brand"], row["category"], row["description"], limit=limit),
        )
        for row in rows
    }


def day_states(lake: Lake, day: str, state_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """state_id -> history, profile and context; the target is not read.

    Raises:
        ContractError: a state is not among the day's.
    """
    wanted = set(state_ids)
    columns = ["state_id", "history", "profile", "context"]
    rows = lake.read("user_states", where={"day": day}, columns=columns).to_pylist()
    states = {row["state_id"]: row for row in rows if row["state_id"] in wanted}
    if missing := sorted(wanted - states.keys()):
        raise ContractError(
            f"table user_states of {day}: {len(missing)} states of the candidates or pairs are missing, first "
            f"{missing[0]!r}; re-run build_states and generate_candidates"
        )
    return states


class Pair(NamedTuple):
    """A preference pair as two calls of one state."""

    name: str
    user_id: str
    preferred: Call
    other: Call


def split_pairs(lake: Lake, day: str, split: str) -> list[dict[str, str]]:
    """Rows of ``preference_pairs`` of a split's decisions, with the user."""
    states = lake.read("user_states", where={"day": day, "split": split}, columns=["decision_id", "user_id"])
    user_of = dict(zip(*(column.to_pylist() for column in states.columns), strict=True))
    columns = ["decision_id", "state_id", "preferred_item", "other_item"]
    pairs = lake.read("preference_pairs", where={"day": day}, columns=columns).to_pylist()
    return [{**pair, "user_id": user_of[pair["decision_id"]]} for pair in pairs if pair["decision_id"] in user_of]


def day_pairs(lake: Lake, day: str, split: str, texts: Texts, *, limit: int, seed: int) -> list[Pair]:
    """At most ``limit`` preference pairs of a split's decisions between items of ``texts``, in an order by seeded hash."""
    rows = [
        row for row in split_pairs(lake, day, split) if row["preferred_item"] in texts and row["other_item"] in texts
    ]
    names = [f"{row['decision_id']}/{row['other_item']}" for row in rows]
    chosen = np.argsort(hash_share(names, f"judge-pairs-{seed}"), kind="stable")[:limit].tolist()
    return [
        Pair(
            names[number],
            rows[number]["user_id"],
            *(
                (rows[number]["state_id"], item, texts[item][0])
                for item in (rows[number]["preferred_item"], rows[number]["other_item"])
            ),
        )
        for number in chosen
    ]


def request(call: Call, state: Mapping[str, Any], texts: Texts) -> JudgeRequest:
    """What the engine is asked for ``call``."""
    state_id, item_id, item_hash = call
    about = state_request(state_id, state, texts)
    return replace(about, item_id=item_id, item_hash=item_hash, item_text=texts[item_id][1])


def have_texts(calls: Iterable[Call], texts: Texts) -> bool:
    """Whether a group or pair of calls can be judged: one without all of its scores is of no use to anybody."""
    return all(texts[item][1] for _, item, _ in calls)


def state_request(state_id: str, state: Mapping[str, Any], texts: Texts) -> JudgeRequest:
    """A request about a state and no item: what weights are asked for."""
    return JudgeRequest(
        state_id=state_id,
        item_id="",
        item_hash="",
        # Items of the history that have left the catalogue, or have no text, tell the judge nothing.
        history_texts=tuple(texts[item][1] for item in state["history"] if item in texts and texts[item][1]),
        profile=state["profile"],
        context=state["context"],
        item_text="",
    )


def _score_rows(calls: Sequence[Call], results: Sequence[JudgeResult], version: str, aspects: list[str]) -> pa.Table:
    """Rows of ``aspect_scores``."""
    return pa.table(
        {
            "judge_version": [version] * len(calls),
            "state_id": [state for state, _, _ in calls],
            "item_id": [item for _, item, _ in calls],
            "item_hash": [content for _, _, content in calls],
            "aspects": [aspects] * len(calls),
            "scores": pa.array([result.scores for result in results], pa.list_(pa.float32())),
            "probabilities": pa.array([result.probabilities for result in results], pa.list_(pa.float32())),
            "format_mass": pa.array([result.format_mass for result in results], pa.float64()),
            "evidence": pa.array([result.evidence for result in results], pa.string()),
            "failure": pa.array([result.failure for result in results], pa.string()),
        }
    )


def known_calls(lake: Lake, version: str, states: Iterable[str], table_version: int | None = None) -> set[Call]:
    """Calls about ``states`` that judge ``version`` has scored. Failed ones are not among them: they are tried again."""
    return set(_calls(_known_rows(lake, version, states, table_version=table_version)))


def _known_rows(
    lake: Lake, version: str, states: Iterable[str], *columns: str, table_version: int | None = None
) -> pa.Table:
    """Rows of `known_calls` with their keys and ``columns``."""
    columns = ("state_id", "item_id", "item_hash", "failure", *columns)
    where = {"judge_version": version, "state_id": sorted(set(states))}
    rows = lake.read("aspect_scores", where=where, columns=list(columns), version=table_version)
    return rows.filter(pc.is_null(rows["failure"]))


def _calls(rows: pa.Table) -> Iterator[Call]:
    return zip(*(rows[name].to_pylist() for name in ("state_id", "item_id", "item_hash")), strict=True)


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What making calls took; as metadata of a commit, and summed."""

    asked: int = 0
    unanswered: int = 0
    """Of these, calls that no model answered (server gone, out of time): nobody pays for them."""
    failed: int = 0
    """Of the asked ones, those without scores, whatever the reason."""
    format_measured: int = 0
    """Calls of which it was measured how likely the model would have left the format."""
    left_format: float = 0.0
    """The sum of these probabilities."""
    prompt: int = 0
    """Prompt tokens."""
    cached: int = 0
    """Prompt tokens that were not computed again."""
    generated: int = 0
    seconds: float = 0.0
    """Of the engines, added up."""

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    def metadata(self) -> dict[str, str]:
        """For the commit."""
        return {f"judge_{name}": json.dumps(value) for name, value in asdict(self).items()}

    @classmethod
    def of_commit(cls, commit: Mapping[str, Any]) -> "Spent":
        """What `metadata` put into a commit."""
        return cls(**{one.name: json.loads(commit[f"sgrec.judge_{one.name}"]) for one in fields(cls)})


def remember_version(lake: Lake, version: str, engine: Engine) -> None:
    """The row of ``judge_versions`` that says what ``version`` stands for, if it is not there yet."""
    if lake.count("judge_versions", where={"judge_version": version}):
        return
    facts = {name: fact for name, fact in engine.version_facts().items() if name not in ("rubric", "code")}
    row = {"judge_version": version, "facts": json.dumps(facts, sort_keys=True), "rubric": engine.rubric.text}
    lake.upsert("judge_versions", pa.Table.from_pylist([row]))


def score_shard(
    lake: Lake, day: str, version: str, engine: Engine, requests: Mapping[Call, JudgeRequest], *, worker: str = ""
) -> Spent:
    """Ask ``engine`` and publish its answers in one commit."""
    before, started = replace(engine.usage), time.monotonic()
    results = engine.score(list(requests.values()))
    return publish_scores(
        lake,
        day,
        version,
        engine.rubric.aspect_ids,
        list(requests),
        results,
        usage=engine.usage - before,
        seconds=time.monotonic() - started,
        worker=worker,
        kind=_kind(engine),
    )


def publish_scores(
    lake: Lake,
    day: str,
    version: str,
    aspects: list[str],
    calls: Sequence[Call],
    results: Sequence[JudgeResult],
    *,
    usage: Usage | None = None,
    seconds: float = 0.0,
    worker: str = "",
    kind: str = "",
) -> Spent:
    """Upsert rows of ``aspect_scores`` in one commit that says what they took: ``usage`` and ``seconds`` of one engine."""
    masses = [result.format_mass for result in results if result.format_mass is not None]
    spent = Spent(
        asked=len(results),
        unanswered=sum(result.unanswered for result in results),
        failed=sum(result.failure is not None for result in results),
        format_measured=len(masses),
        left_format=len(masses) - sum(masses),
        seconds=round(seconds, 3),
        **asdict(usage or Usage()),
    )
    lake.upsert(
        "aspect_scores",
        _score_rows(calls, results, version, aspects),
        metadata={
            "day": day,
            "judge_version": version,
            "judge_worker": worker,
            "judge_kind": kind,
            **spent.metadata(),
        },
    )
    return spent


def _commits(lake: Lake, version: str | None, table_version: int | None) -> Iterator[dict[str, Any]]:
    """Commits of judge ``version``, or of all, up to a version of the table; the newest first."""
    table = lake.open("aspect_scores", table_version)
    for commit in table.history() if table else []:
        if version in (None, commit.get("sgrec.judge_version")) and "sgrec.judge_asked" in commit:
            yield commit


def paid_before(lake: Lake, day: str, version: str, table_version: int | None = None) -> int:
    """Calls that earlier runs for ``day`` paid to judge ``version``, from the commits of the table."""
    commits = [commit for commit in _commits(lake, version, table_version) if commit["sgrec.day"] == day]
    return sum(spent.asked - spent.unanswered for spent in map(Spent.of_commit, commits))


def has_judged_nights(lake: Lake, version: str) -> bool:
    """Whether any calls of judge ``version`` were made for a night, and not just for labels."""
    return any(not commit["sgrec.day"].endswith(FOR_LABELS) for commit in _commits(lake, version, None))


def spent_by_workers(lake: Lake, day: str, version: str, after: int) -> Spent:
    """What workers have spent for ``day`` in the commits after version ``after`` of the table."""
    total = Spent()
    for commit in _commits(lake, version, None):
        if commit["sgrec.day"] == day and commit["sgrec.judge_worker"] and commit["version"] > after:
            total += Spent.of_commit(commit)
    return total


class Speed(NamedTuple):
    """What one engine has done in a second, the time that it takes to load included."""

    tokens: float
    """Prompt tokens (those that were computed, where that is known) and generated ones."""
    counts_computed: bool
    """Whether it is known which prompt tokens were computed; some servers do not say."""


def measured_speed(lake: Lake, version: str, engine: Engine) -> Speed | None:
    """Speed of one engine over the commits of judge ``version``; of other versions with the same model where it is new.

    None when that model has not worked yet.
    """
    kin = [commit for commit in _commits(lake, None, None) if commit.get("sgrec.judge_kind") == _kind(engine)]
    own = [commit for commit in kin if commit["sgrec.judge_version"] == version]
    spent = sum(map(Spent.of_commit, own or kin), Spent())
    tokens = spent.prompt - spent.cached + spent.generated
    return Speed(tokens / spent.seconds, spent.cached > 0) if tokens and spent.seconds else None


def _kind(engine: Engine) -> str:
    """What has a speed of its own: the engine, its model and the GPUs under it."""
    judge = engine.settings.judge
    return " ".join([judge.engine, served_model(judge), judge.mode, f"{judge.gpus} GPU"])


class CachedJudge:
    """The night's judge on demand: scores that ``aspect_scores`` holds are read, others asked for once.

    What was asked for becomes rows of the table, ``judge.shard_size`` calls a commit; `publish` writes the rest.
    ``judge.max_calls`` stops paying, after what earlier runs of the night paid.
    """

    def __init__(self, settings: Settings, lake: Lake, day: str, state_ids: Iterable[str]) -> None:
        has_context = day_has_context(lake, day)
        self.version = judge_version(settings, has_context)
        self.paid = 0
        self._lake, self._day = lake, day
        self._texts = day_texts(lake, day, settings)
        self._states = day_states(lake, day, state_ids)
        self._engine = make_engine(settings, has_context)
        self.aspects = self._engine.rubric.aspect_ids
        known = _known_rows(lake, self.version, self._states, "scores")
        self._scores: dict[Call, list[float] | None] = dict(
            zip(_calls(known), known["scores"].to_pylist(), strict=True)
        )
        self._published, self._seconds = replace(self._engine.usage), 0.0
        self._new: list[tuple[Call, JudgeResult]] = []
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
            self._new += zip(missing, results, strict=True)
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
        """Upsert what was asked for since the last time."""
        if self._new:
            calls, results = zip(*self._new, strict=True)
            publish_scores(
                self._lake,
                self._day,
                self.version,
                self.aspects,
                calls,
                results,
                usage=self._engine.usage - self._published,
                seconds=self._seconds,
                kind=_kind(self._engine),
            )
            self._published, self._seconds, self._new = replace(self._engine.usage), 0.0, []
