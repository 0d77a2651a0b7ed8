"""What the judge's training learns from and is measured on: labels and pairs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sgrec_core.errors import InputError
from sgrec_core.hashing import hash_share
from sgrec_core.judge.calls.requests import Pair, Texts, day_states, request
from sgrec_core.judge.engines.language_model import LanguageModelEngine
from sgrec_core.judge.request import JudgeRequest
from sgrec_core.judge.rubric import Rubric
from sgrec_core.judge.training.labels import call_of, label_request
from sgrec_core.lake import Lake

PAIRS_AT_ONCE = 100
"""That are scored between two steps of a progress bar."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A request and the true level of each aspect."""

    request: JudgeRequest
    labels: tuple[str, ...]
    """In the order of the rubric's aspects."""


@dataclass(frozen=True, kw_only=True)
class Preference:
    """Two requests in one state, of whose items the first is preferred."""

    preferred: JudgeRequest
    other: JudgeRequest
    user_id: str = ""


@dataclass(frozen=True, kw_only=True)
class ScoredPair:
    """A preference with its items' aspect scores, as a judge gives them."""

    state: JudgeRequest
    preferred: tuple[float, ...]
    other: tuple[float, ...]
    user_id: str = ""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The labels of a day, by what they are for."""

    training: list[Labelled]
    """In an order fixed by hash."""
    held_out: list[Labelled]
    held_out_users: list[str]
    """Of each of them."""


def day_samples(lake: Lake, day: str, rubric: Rubric, seed: int, note: Callable[[str], None]) -> Samples:
    """The samples of ``judge_labels`` of ``day``.

    Who labelled the same item in the same state as a held-out user is not trained on; ``note`` is told of it.

    Raises:
        InputError: there are none of either.
    """
    rows = lake.read("judge_labels", where={"day": day}).to_pylist()
    usable = [row for row in rows if row["aspects"] == rubric.aspect_ids]
    if len(usable) < len(rows):
        note(
            f"{len(rows) - len(usable)} samples were left out: they are not labelled for the aspects that nights judge"
            f" ({', '.join(rubric.aspect_ids)})"
        )
    held_out = [row for row in usable if row["split"] == "validation"]
    asked = {call_of(label_request(row)) for row in held_out}
    training = [row for row in usable if row["split"] == "train" and call_of(label_request(row)) not in asked]
    if dropped := len(usable) - len(held_out) - len(training):
        note(f"{dropped} samples were left out: held-out users have the same item in the same state")
    if not training or not held_out:
        raise InputError(
            f"judge_labels of {day} has {len(training)} samples to train on and {len(held_out)} of held-out users;"
            " it needs both: more labels, or a larger SGREC_STATES__VALIDATION_SHARE"
        )
    order = np.argsort(hash_share([row["sample_id"] for row in training], f"judge-training-{seed}"))
    return Samples(
        training=[_labelled(training[place]) for place in order.tolist()],
        held_out=[_labelled(row) for row in held_out],
        held_out_users=[row["user_id"] for row in held_out],
    )


def _labelled(row: Mapping[str, Any]) -> Labelled:
    return Labelled(request=label_request(row), labels=tuple(row["labels"]))


def scored_pairs(engine: LanguageModelEngine, pairs: Sequence[Preference]) -> list[ScoredPair]:
    """The pairs whose both items the judge could score."""
    results = engine.score([request for pair in pairs for request in (pair.preferred, pair.other)])
    return [
        ScoredPair(
            state=pair.preferred,
            preferred=tuple(first.scores),
            other=tuple(second.scores),
            user_id=pair.user_id,
        )
        for pair, first, second in zip(pairs, results[::2], results[1::2], strict=True)
        if first.scores is not None and second.scores is not None
    ]


def day_scored_pairs(
    lake: Lake,
    day: str,
    engine: LanguageModelEngine,
    pairs: Sequence[Pair],
    texts: Texts,
    *,
    advance: Callable[[int], None],
) -> list[ScoredPair]:
    """``pairs`` of the day as ``engine`` scores their items; without those that it cannot score.

    ``advance`` is told how many more are done.
    """
    states = day_states(lake, day, {pair.preferred[0] for pair in pairs})
    scored: list[ScoredPair] = []
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        part = pairs[start : start + PAIRS_AT_ONCE]
        scored += scored_pairs(
            engine,
            [
                Preference(
                    preferred=request(pair.preferred, states[pair.preferred[0]], texts),
                    other=request(pair.other, states[pair.other[0]], texts),
                    user_id=pair.user_id,
                )
                for pair in part
            ],
        )
        advance(len(part))
    return scored
