"""What held-out labels and pairs say of a judge, and of one version against another.

Labels and pairs belong to the users that no fit of a night reads. Both versions answer the same calls, each with its
own engine, rubric and mode; answers are rows of ``aspect_scores`` like a night's, so that no call is paid twice.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from sgrec_core.errors import InputError, SettingsError
from sgrec_core.evaluation.gate import Verdict
from sgrec_core.evaluation.metrics import per_user
from sgrec_core.evaluation.significance import bootstrap, paired_bootstrap
from sgrec_core.judge.calls.ledger import judged_with
from sgrec_core.judge.calls.requests import Call, Pair, day_pairs, day_states, day_texts, request
from sgrec_core.judge.calls.scores import CALL, calls_of, find_scores, table_of
from sgrec_core.judge.engines import day_has_context, judge_version
from sgrec_core.judge.request import JudgeRequest
from sgrec_core.judge.rubric import Aspect, Rubric, load_rubric
from sgrec_core.judge.training.labels import call_of, label_request
from sgrec_core.judge.versions.accepted import accepted_judges, settings_of, versions_of
from sgrec_core.judge.versions.adapters import Adapter, trained, with_adapter
from sgrec_core.judge.versions.registered import check_trainable
from sgrec_core.lake import Lake
from sgrec_core.settings import Settings

BINS = 10
"""Equal ranges of confidence."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Labels and pairs of the held-out users of a day."""

    has_context: bool
    rubric: Rubric
    """What the labels are levels of."""
    samples: list[dict[str, Any]]
    """Rows of ``judge_labels``."""
    pairs: list[Pair]

    @cached_property
    def sample_calls(self) -> list[Call]:
        return [call_of(label_request(sample)) for sample in self.samples]

    @cached_property
    def calls(self) -> list[Call]:
        """Every call that labels and pairs need."""
        of_pairs = (call for pair in self.pairs for call in (pair.preferred, pair.other))
        return list(dict.fromkeys([*self.sample_calls, *of_pairs]))


def held_out(lake: Lake, settings: Settings, day: str) -> HeldOut:
    """What the day's tables hold.

    Raises:
        InputError: the day's night has not run, or no label of a held-out user is there.
    """
    if not lake.count("user_states", where={"day": day}):
        raise InputError(f"user_states has nothing of {day}: compare judges on a day whose night has run")
    has_context = day_has_context(lake, day)
    rubric = load_rubric(has_context, settings.judge.rubric)
    rows = lake.read("judge_labels", where={"day": day, "split": "validation"}).to_pylist()
    samples = [row for row in rows if row["aspects"] == rubric.aspect_ids]
    if not samples:
        raise InputError(
            f"judge_labels of {day} has no sample of a held-out user for the aspects {', '.join(rubric.aspect_ids)}"
        )
    texts = day_texts(lake, day, settings)
    pairs = [
        pair
        for pair in day_pairs(
            lake, day, "validation", texts, limit=settings.judge_training.max_test_pairs, seed=settings.judge.seed
        )
        if texts[pair.preferred[1]][1] and texts[pair.other[1]][1]
    ]
    return HeldOut(has_context=has_context, rubric=rubric, samples=samples, pairs=pairs)


def requests_of(lake: Lake, settings: Settings, day: str, held: HeldOut) -> dict[Call, JudgeRequest]:
    """What the judge in ``settings`` is asked, with texts as long as its rubric allows."""
    texts = day_texts(lake, day, settings)
    states = day_states(lake, day, {pair.preferred[0] for pair in held.pairs})
    requests = {call_of(asked): asked for asked in map(label_request, held.samples)}
    return requests | {
        call: request(call, states[call[0]], texts) for pair in held.pairs for call in (pair.preferred, pair.other)
    }


def trained_candidate(settings: Settings, day: str) -> Adapter | None:
    """The adapter that the day's training made, where that is the candidate (``judge_training.candidate``).

    Raises:
        InputError: nothing was trained for the day.
        SettingsError: the judge in ``settings`` is not of the kind that is trained.
    """
    if settings.judge_training.candidate == "settings":
        return None
    check_trainable(settings)
    made = trained(settings, day)
    if made is None:
        raise InputError(f"no judge was trained for {day}; run `python -m jobs.train_judge --day {day}` first")
    return made


def settings_of_roles(settings: Settings, day: str) -> dict[str, Settings]:
    """Settings of the ``candidate``, and of the ``active`` judge that it is compared with.

    The active judge is the one that the day's night judged with, else the one accepted last.

    Raises:
        InputError: there is no other judge to compare the candidate with, or it cannot be asked any more.
        SettingsError: the candidate was trained for another judge.
    """
    made = trained_candidate(settings, day)
    candidate = settings if made is None else with_adapter(settings, made)
    accepted, versions, night = (
        accepted_judges(settings),
        versions_of(candidate),
        judged_with(Lake(settings.lake_root), day),
    )
    others = [one for one in accepted if not set(one.versions) & set(versions)]
    if not accepted:
        raise InputError(
            f"no judge of {settings.home} was accepted yet: run a night with the judge that it has, then compare"
        )
    if not others:
        raise InputError(
            f"judge {' / '.join(versions)} is the only one of {settings.home}: nothing to compare it with; set"
            " SGREC_JUDGE__* to the one"
            " that is to be compared with it, or train one with `sgrec train-judge`"
        )
    *_, other = [one for one in others if night in one.versions] or others
    active = settings_of(settings, other)
    gone = "its model's files have changed, or this version of sgrec words prompts otherwise"
    try:
        can_be_asked = bool(set(versions_of(active)) & set(other.versions))
    except SettingsError as error:
        can_be_asked, gone = False, str(error)
    if not can_be_asked:
        raise InputError(
            f"judge {other} cannot be asked any more ({gone}); let the new one in with `sgrec accept-judge`"
        )
    return {"candidate": candidate, "active": active}


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one version said."""

    version: str
    aspects: list[Aspect]
    scores: dict[Call, np.ndarray]
    probabilities: dict[Call, np.ndarray]
    """Of each level, the levels of the first aspect first; absent where the judge names one level."""
    failed: int
    """Calls that are rows without scores."""
    missing: int
    """Calls that are no rows: nobody has asked."""

    def levels(self, call: Call) -> list[str]:
        """The label of each aspect's likeliest level."""
        if call in self.probabilities:
            places = [int(of_aspect.argmax()) for of_aspect in self._by_aspect(call)]
        else:
            places = [
                int(np.argmin([abs(level.value - score) for level in aspect.levels]))
                for aspect, score in zip(self.aspects, self.scores[call], strict=True)
            ]
        return [aspect.levels[place].label for aspect, place in zip(self.aspects, places, strict=True)]

    def confidence(self, call: Call) -> list[float]:
        """The probability of each aspect's likeliest level; 1 where the judge just names it."""
        if call not in self.probabilities:
            return [1.0] * len(self.aspects)
        return [float(of_aspect.max()) for of_aspect in self._by_aspect(call)]

    def _by_aspect(self, call: Call) -> list[np.ndarray]:
        ends = np.cumsum([len(aspect.levels) for aspect in self.aspects])
        return np.split(self.probabilities[call], ends[:-1])


def answers(lake: Lake, settings: Settings, day: str, held: HeldOut) -> Answers:
    """The answers in ``aspect_scores`` of the judge in ``settings``."""
    version = judge_version(settings, held.has_context)
    rows = find_scores(lake, day, version, table_of(held.calls), [*CALL, "scores", "probabilities"])
    by_call = dict(zip(calls_of(rows), rows.to_pylist(), strict=True))
    mine = {call: by_call[call] for call in held.calls if call in by_call and by_call[call]["scores"] is not None}
    return Answers(
        version=version,
        aspects=list(load_rubric(held.has_context, settings.judge.rubric).aspects),
        scores={call: np.array(row["scores"]) for call, row in mine.items()},
        probabilities={call: np.array(row["probabilities"]) for call, row in mine.items() if row["probabilities"]},
        failed=sum(call in by_call for call in held.calls) - len(mine),
        missing=sum(call not in by_call for call in held.calls),
    )


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of ``judge_evaluations`` without day, version and role.

    Values with an interval are means over users, each of whom counts once; the others are over labels.
    """

    metric: str
    aspect: str = "all"
    bucket: str = "all"
    value: float
    lower: float | None = None
    upper: float | None = None
    count: int


def measures(held: HeldOut, judge: Answers, *, seed: int, resamples: int) -> Iterator[Row]:
    """Accuracy, order, calibration and confusion of one version; failures and order alone where its levels are others.

    A failed call counts as wrong, and as half a pair in order.
    """
    users = np.array([sample["user_id"] for sample in held.samples])

    def interval(values: np.ndarray, of: np.ndarray) -> dict[str, Any]:
        found = bootstrap(per_user(values, of), seed=seed, resamples=resamples)
        return {"value": found.value, "lower": found.lower, "upper": found.upper, "count": values.size}

    yield Row(metric="failed_share", value=judge.failed / len(held.calls), count=len(held.calls))
    if held.pairs:
        yield Row(metric="pair_auc", **interval(_order(held, judge), _pair_users(held)))
    if scales(judge.aspects) != scales(held.rubric.aspects):
        return
    aspects = held.rubric.aspect_ids
    correct, sure = _points(held, judge)
    yield Row(metric="point_acc", **{**interval(correct.mean(axis=1), users), "count": correct.size})
    for column, aspect in enumerate(aspects):
        yield Row(metric="point_acc", aspect=aspect, **interval(correct[:, column], users))
    answered = np.array([call in judge.scores for call in held.sample_calls])
    for name, columns in [("all", list(range(len(aspects)))), *((aspect, [n]) for n, aspect in enumerate(aspects))]:
        right, confident = correct[answered][:, columns].ravel(), sure[answered][:, columns].ravel()
        error = 0.0
        place = np.minimum((confident * BINS).astype(int), BINS - 1)
        for number in np.unique(place).tolist():
            inside = place == number
            accuracy, confidence = float(right[inside].mean()), float(confident[inside].mean())
            error += abs(accuracy - confidence) * float(inside.mean())
            if name == "all":
                bucket = f"{number / BINS:.1f}-{(number + 1) / BINS:.1f}"
                yield Row(metric="accuracy", bucket=bucket, value=accuracy, count=int(inside.sum()))
                yield Row(metric="confidence", bucket=bucket, value=confidence, count=int(inside.sum()))
        yield Row(metric="calibration_error", aspect=name, value=error, count=right.size)
    yield from _confusion(held, judge)


def against(held: HeldOut, judge: Answers, other: Answers, *, seed: int, resamples: int) -> Iterator[Row]:
    """How far one version agrees with another, call by call, and how much better it is where both answered.

    Versions whose rubrics have other aspects or levels neither agree nor disagree: their pairs alone are compared.
    """
    both = [call for call in held.calls if call in judge.scores and call in other.scores]
    alike = scales(judge.aspects) == scales(other.aspects)
    if both and alike:
        same = np.array([np.equal(judge.levels(call), other.levels(call)) for call in both], dtype=float)
        distance = np.array([np.abs(judge.scores[call] - other.scores[call]) for call in both])
        for metric, values in (("agreement", same), ("score_distance", distance)):
            yield Row(metric=metric, value=float(values.mean()), count=values.size)
            for aspect, column in zip(held.rubric.aspect_ids, values.T, strict=True):
                yield Row(metric=metric, aspect=aspect, value=float(column.mean()), count=column.size)

    answered = set(both)
    held = replace(
        held,
        samples=[row for row, call in zip(held.samples, held.sample_calls, strict=True) if call in answered],
        pairs=[pair for pair in held.pairs if pair.preferred in answered and pair.other in answered],
    )

    def difference(metric: str, values: Callable[[Answers], np.ndarray], users: np.ndarray) -> Row:
        ours, theirs = values(judge), values(other)
        found = paired_bootstrap(per_user(ours, users), per_user(theirs, users), seed=seed, resamples=resamples)
        return Row(
            metric=f"difference_{metric}", value=found.value, lower=found.lower, upper=found.upper, count=ours.size
        )

    users = np.array([sample["user_id"] for sample in held.samples]) if alike else _pair_users(held)
    yield Row(metric="compared_users", value=len(set(users)), count=len(users))
    if held.samples and alike:
        yield difference("point_acc", lambda version: _points(held, version)[0].mean(axis=1), users)
    if held.pairs:
        yield difference("pair_auc", lambda version: _order(held, version), _pair_users(held))


def _points(held: HeldOut, judge: Answers) -> tuple[np.ndarray, np.ndarray]:
    """[N, A]: whether the likeliest level is the label, and how sure the judge was; 0 and 0 for failed calls."""
    shape = (len(held.samples), len(held.rubric.aspects))
    correct, sure = np.zeros(shape), np.zeros(shape)
    for row, (sample, call) in enumerate(zip(held.samples, held.sample_calls, strict=True)):
        if call in judge.scores:
            sure[row] = judge.confidence(call)
            correct[row] = np.equal(judge.levels(call), sample["labels"])
    return correct, sure


def scales(aspects: Iterable[Aspect]) -> list[tuple[str, list[str]]]:
    """What labels are of: aspects with their levels."""
    return [(aspect.id, [level.label for level in aspect.levels]) for aspect in aspects]


def _order(held: HeldOut, judge: Answers) -> np.ndarray:
    """[P]: 1 where the preferred item has the higher mean score, one half where both are equal or a call failed."""
    order = np.full(len(held.pairs), 0.5)
    for number, pair in enumerate(held.pairs):
        if pair.preferred in judge.scores and pair.other in judge.scores:
            gap = round(float(judge.scores[pair.preferred].mean() - judge.scores[pair.other].mean()), 9)
            order[number] = (gap > 0) + 0.5 * (gap == 0)
    return order


def _pair_users(held: HeldOut) -> np.ndarray:
    return np.array([pair.user_id for pair in held.pairs])


def _confusion(held: HeldOut, judge: Answers) -> Iterator[Row]:
    """Of each true level, the share that was given each level."""
    answered = [
        (sample["labels"], judge.levels(call))
        for sample, call in zip(held.samples, held.sample_calls, strict=True)
        if call in judge.scores
    ]
    for column, aspect in enumerate(held.rubric.aspects):
        counts = Counter((true[column], given[column]) for true, given in answered)
        totals = Counter(true[column] for true, _ in answered)
        for (true, given), count in sorted(counts.items()):
            share = count / totals[true]
            yield Row(metric="confusion", aspect=aspect.id, bucket=f"{true} > {given}", value=share, count=count)


def decide(rows: Mapping[str, Sequence[Row]], settings: Settings, active: str) -> Verdict:
    """The gate of a new version: more labels hit beyond chance, pairs not ordered worse, and few failed calls.

    It has to be better, not just no worse: a new version pays for all scores anew. Where the two rubrics have other
    aspects or levels, labels do not compare them, and pairs have to be ordered better beyond chance.

    Args:
        rows: of ``candidate``, with those of `against`.
        active: version of the judge that it was compared with.
    """
    found = {row.metric: row for row in rows["candidate"] if row.aspect == row.bucket == "all"}
    users, least = int(found["compared_users"].value), settings.judge_training.min_users
    if users < least:
        return Verdict(
            False,
            f"labels or pairs of {users} held-out users, at least {least} are needed (SGREC_JUDGE_TRAINING__MIN_USERS)",
        )
    failed, limit = found["failed_share"].value, settings.judge.max_failed_share
    if failed > limit:
        return Verdict(
            False, f"{failed:.1%} of its calls failed, at most {limit:.1%} may (SGREC_JUDGE__MAX_FAILED_SHARE)"
        )
    points, pairs = found.get("difference_point_acc"), found.get("difference_pair_auc")
    if points is None and pairs is None:
        return Verdict(
            False, "its rubric has other aspects or levels than the active judge's, and there are no pairs to compare"
        )
    words = ", ".join(
        f"{name} {_signed(row)}" for name, row in (("PointAcc", points), ("PairAUC", pairs)) if row is not None
    )
    words += f" against judge {active}"
    better = points or pairs
    assert better is not None, "one of them is there"
    if (better.lower or 0.0) <= 0:
        return Verdict(False, f"{words}: not surely better")
    tolerance = settings.judge_training.tolerance
    if pairs and (pairs.lower or 0.0) < -tolerance:
        return Verdict(
            False, f"{words}: pairs may be ordered worse by more than {tolerance} (SGREC_JUDGE_TRAINING__TOLERANCE)"
        )
    return Verdict(True, words)


def _signed(row: Row) -> str:
    return f"{row.value:+.4f} [{row.lower:+.4f}, {row.upper:+.4f}]"
