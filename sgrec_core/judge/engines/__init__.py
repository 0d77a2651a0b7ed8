"""Engines that answer calls: similarities of text embeddings, or a language model in process or behind a server."""

import json

from sgrec_core.hashing import digest
from sgrec_core.judge.engines.backends import served_model
from sgrec_core.judge.engines.embedding import EmbeddingEngine
from sgrec_core.judge.engines.language_model import LanguageModelEngine
from sgrec_core.judge.rubric import load_rubric
from sgrec_core.lake import Lake
from sgrec_core.settings import Settings

__all__ = [
    "EmbeddingEngine",
    "Engine",
    "LanguageModelEngine",
    "day_has_context",
    "is_meaningless",
    "judge_version",
    "make_engine",
]

Engine = EmbeddingEngine | LanguageModelEngine


def make_engine(settings: Settings, has_context: bool) -> Engine:
    """The engine that ``settings.judge`` names, over the rubric for data with or without context.

    Nothing is loaded yet.

    Raises:
        SettingsError: the rubric or the model setting is not valid.
    """
    rubric = load_rubric(has_context, settings.judge.rubric)
    kind = EmbeddingEngine if settings.judge.engine == "embedding" else LanguageModelEngine
    return kind(settings, rubric)


def judge_version(settings: Settings, has_context: bool) -> str:
    """Content hash of engine, model and revision, prompt, rubric and decoding; 16 hex characters.

    Computed without loading the engine, the same in the main and in the judge's environment.

    Raises:
        SettingsError: the model setting is not valid.
    """
    return digest(json.dumps(make_engine(settings, has_context).version_facts(), sort_keys=True))


def day_has_context(lake: Lake, day: str) -> bool:
    """Whether any user state of the day has a context; without one the context aspect is dropped."""
    context = lake.read("user_states", where={"day": day}, columns=["context"])["context"]
    return context.null_count < len(context)


def is_meaningless(settings: Settings) -> bool:
    """Whether the judge's scores say nothing, because an untrained model made on the spot gives them."""
    return settings.judge.engine != "embedding" and served_model(settings.judge) == "tiny"
