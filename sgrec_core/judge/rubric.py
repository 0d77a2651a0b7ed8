"""The rubric: which aspects are judged, on which scales, in which words; read from a YAML file."""

import hashlib
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sgrec_core.errors import SettingsError

DEFAULT = Path(__file__).with_name("rubric.yaml")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Level(_Part):
    """One step of an aspect's scale: the single-letter label that an LLM answers with, and the score it stands for."""

    label: str = Field(pattern="^[A-Z]$")
    value: float = Field(ge=-1, le=1)
    meaning: str = Field(min_length=1)


class Aspect(_Part):
    """One question of the rubric, with its levels from best to worst."""

    id: str = Field(pattern="^[a-z][a-z0-9_]*$")
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

    @model_validator(mode="after")
    def _levels_are_a_scale(self) -> Self:
        if self.id == "reasoning":
            raise ValueError("'reasoning' is the name of the reasoning in an answer; call the aspect otherwise")
        if len(self.value_of) != len(self.levels) or self.lowest == self.highest:
            raise ValueError("needs distinct labels and at least two scores")
        values = [level.value for level in self.levels]
        if values != sorted(values, reverse=True):
            raise ValueError(f"needs its levels from best to worst, not {values}")
        return self


class Limits(_Part):
    """How many characters (and history entries) of each text reach the judge."""

    history_entries: int = Field(ge=0)
    history_entry: int = Field(ge=2)
    profile: int = Field(ge=2)
    context: int = Field(ge=2)
    item: int = Field(ge=2)


class Prompt(_Part):
    """The wording. Names in braces are filled in; `_PLACEHOLDERS` says which each text needs."""

    system: str
    user: str
    absent: str
    label_question: str
    reasoning_question: str
    weights_system: str
    weights_user: str

    @model_validator(mode="after")
    def _placeholders_are_there(self) -> Self:
        for name, needed in _PLACEHOLDERS.items():
            if missing := [f"{{{word}}}" for word in needed if f"{{{word}}}" not in getattr(self, name)]:
                raise ValueError(f"{name} lacks {', '.join(missing)}")
        return self


_PLACEHOLDERS = {
    "system": ("aspects",),
    "user": ("profile", "context", "history", "item", "question"),
    "label_question": ("id", "labels"),
    "reasoning_question": ("example",),
    "weights_system": ("aspects",),
    "weights_user": ("profile", "context", "history", "ids"),
}


class Rubric(_Part):
    """The aspects that are judged on one data set, with the prompt that asks for them."""

    aspects: tuple[Aspect, ...] = Field(min_length=1)
    limits: Limits
    prompt: Prompt
    text: str
    """The whole rubric file: what ``judge_version`` hashes, and what the tiny model's tokenizer is trained on."""

    @property
    def aspect_ids(self) -> list[str]:
        return [aspect.id for aspect in self.aspects]

    def aspects_for(self, has_context: bool) -> tuple[Aspect, ...]:
        """The aspects that are judged where there is a context, or where there is none."""
        return tuple(aspect for aspect in self.aspects if has_context or not aspect.needs_context)

    @property
    def fingerprint(self) -> str:
        return hashlib.blake2b(self.text.encode() + repr(self.aspect_ids).encode(), digest_size=16).hexdigest()


@lru_cache
def load_rubric(has_context: bool, path: Path | None = None) -> Rubric:
    """The rubric for data with or without context; without one, aspects that need it are dropped.

    ``path`` None is the rubric that comes with sgrec.

    Raises:
        SettingsError: the file is missing or breaks a rule that the engines rely on.
    """
    path = path or DEFAULT
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"rubric {path}: {error}") from None
    if not isinstance(tree, dict):
        raise SettingsError(f"rubric {path}: valid is a mapping with aspects, limits and prompt, like {DEFAULT}")
    try:
        rubric = Rubric.model_validate({**tree, "text": text})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"])
        raise SettingsError(f"rubric {path}: {place}: {first['msg']} (found {str(first['input'])[:80]!r})") from None
    if len(set(rubric.aspect_ids)) < len(rubric.aspects):
        raise SettingsError(f"rubric {path}: aspects must have distinct ids, not {rubric.aspect_ids}")
    kept = rubric.aspects_for(has_context)
    if not kept:
        raise SettingsError(f"rubric {path}: every aspect needs a context, and the data has none")
    return rubric.model_copy(update={"aspects": kept})
