"""What a judge is asked, and what it answers.

An engine is an object with ``rubric``, ``usage`` and ``gone`` (why nobody answers any more, else None);
``version_facts() -> dict``, cheap and without loading anything, which goes into ``judge_version``; and
``score(requests) -> results``, one result for each request in order. What one request does wrong becomes its result's
``failure``; an engine that cannot run at all raises.
"""

from dataclasses import dataclass

ITEM_AND_STATE = ("sgrec_core.items.encoder:item_text", "sgrec_core.judge.calls.requests:request")
"""What words a request from the day's tables: part of every ``judge_version``."""
NO_TEXT = "the item has no text"
"""The failure of a request that no engine is asked about: the same item content fails again."""


@dataclass(frozen=True, kw_only=True)
class JudgeRequest:
    """One (user state, item) pair to judge. Texts arrive raw; engines clean and bound them."""

    state_id: str
    item_id: str
    item_hash: str
    history_texts: tuple[str, ...]
    """Oldest first."""
    profile: str | None
    """Canonical JSON."""
    context: str | None
    """Canonical JSON."""
    item_text: str


@dataclass(frozen=True, kw_only=True)
class JudgeResult:
    """Scores in the order of the rubric's aspects, or the reason why there are none."""

    scores: list[float] | None = None
    probabilities: list[float] | None = None
    """Of the levels of the first aspect, then of the second and so on; each aspect's sum to 1."""
    format_mass: float | None = None
    """The least probability, over the aspects, that a model left to itself answers with one of the labels."""
    evidence: str | None = None
    """The reasoning, where the judge gives any."""
    failure: str | None = None
    unanswered: bool = False
    """Whether it failed because nobody answered; such a call costs nothing."""


@dataclass
class Usage:
    """Tokens that an engine has spent so far."""

    prompt: int = 0
    cached: int = 0
    """Prompt tokens that were not computed again."""
    generated: int = 0

    def __sub__(self, before: "Usage") -> "Usage":
        return Usage(self.prompt - before.prompt, self.cached - before.cached, self.generated - before.generated)
