"""The rubric: which aspects are judged, on which scales, in which words; read from ``rubric.yaml``."""

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files

import yaml

from sgrec_core.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class Level:
    """One step of an aspect's scale: the single-letter label that an LLM answers with, and the score it stands for."""

    label: str
    value: float
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Aspect:
    """One question of the rubric, with its levels from best to worst."""

    id: str
    title: str
    question: str
    levels: tuple[Level, ...]
    needs_context: bool = False

    @property
    def lowest(self) -> float:
        return min(level.value for level in self.levels)

    @property
    def highest(self) -> float:
        return max(level.value for level in self.levels)

    @cached_property
    def value_of(self) -> dict[str, float]:
        """Label -> score."""
        return {level.label: level.value for level in self.levels}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How many characters (and history entries) of each text reach the judge."""

    history_entries: int
    history_entry: int
    profile: int
    context: int
    item: int


@dataclass(frozen=True, kw_only=True)
class Rubric:
    """The aspects that are judged on one data set, with the prompt that asks for them."""

    aspects: tuple[Aspect, ...]
    limits: Limits
    system_prompt: str
    user_prompt: str
    absent: str
    text: str
    """The whole rubric file: what ``judge_version`` hashes, and what the tiny model's tokenizer is trained on."""

    @property
    def aspect_ids(self) -> list[str]:
        return [aspect.id for aspect in self.aspects]

    @property
    def fingerprint(self) -> str:
        return hashlib.blake2b(self.text.encode() + repr(self.aspect_ids).encode(), digest_size=16).hexdigest()


@lru_cache
def load_rubric(has_context: bool) -> Rubric:
    """The rubric for data with or without context; without one, aspects that need it are dropped.

    Raises:
        SettingsError: the file breaks a rule that the engines rely on.
    """
    text = files(__package__).joinpath("rubric.yaml").read_text(encoding="utf-8")
    tree = yaml.safe_load(text)
    aspects = tuple(
        Aspect(**{**entry, "levels": tuple(Level(**level) for level in entry["levels"])})
        for entry in tree["aspects"]
        if has_context or not entry.get("needs_context", False)
    )
    for aspect in aspects:
        if len(aspect.value_of) != len(aspect.levels) or aspect.lowest == aspect.highest:
            raise SettingsError(f"rubric.yaml: aspect {aspect.id!r} needs distinct labels and at least two scores")
        if wrong := [level.label for level in aspect.levels if len(level.label) != 1]:
            raise SettingsError(f"rubric.yaml: labels of aspect {aspect.id!r} must be single letters, not {wrong}")
    return Rubric(
        aspects=aspects,
        limits=Limits(**tree["limits"]),
        system_prompt=tree["prompt"]["system"],
        user_prompt=tree["prompt"]["user"],
        absent=tree["prompt"]["absent"],
        text=text,
    )
