"""What a run of the judge will cost, before it is paid for."""

from collections.abc import Sequence
from dataclasses import dataclass

from sgrec_core.judge.engines.language_model import LanguageModelEngine
from sgrec_core.judge.request import JudgeRequest

SAMPLED_STATES = 64
"""Prompts of so many user states are put into tokens; the others are taken to be alike."""
BLOCK = 16
"""vLLM shares prompts in blocks of so many tokens."""
CHARACTERS_PER_TOKEN = 4
"""Of English text, where the tokenizer is not at hand."""
REASONING_SHARE = 0.5
"""How much of its room a reasoning is taken to use."""


@dataclass(frozen=True)
class Tokens:
    """Of all the requests of a run."""

    prompt: int
    computed: int
    """Prompt tokens that are not shared with the prompt before: rubric, user state and item are computed once."""
    generated: int


def estimate_tokens(engine: LanguageModelEngine, requests: Sequence[JudgeRequest], *, total: int) -> Tokens:
    """Tokens of ``total`` requests, from these ones (at least one): whole states, side by side."""
    prompt = computed = prompts = 0
    before: Sequence[object] = ()
    rubric = 0
    for request in requests:
        for chat in engine.prompts(request):
            tokens: Sequence[object] | None = engine.backend.tokens(chat)
            if tokens is None:
                text = "".join(message["content"] for message in chat)
                tokens = [
                    text[start : start + CHARACTERS_PER_TOKEN] for start in range(0, len(text), CHARACTERS_PER_TOKEN)
                ]
            shared = _shared(before, tokens)
            # The first prompt computes the rubric, once for the whole run: it must not be scaled up.
            rubric = rubric or len(tokens)
            prompt, computed, prompts = prompt + len(tokens), computed + len(tokens) - shared, prompts + 1
            before = tokens
    scale = total / len(requests)
    if engine.mode == "labels":
        generated = float(prompts)
    else:
        room = engine.settings.judge.reasoning_characters / CHARACTERS_PER_TOKEN
        generated = prompts * (
            REASONING_SHARE * room + engine.max_tokens - 4 * engine.settings.judge.reasoning_characters
        )
    return Tokens(
        prompt=round(prompt * scale),
        computed=round((computed - rubric) * scale + rubric),
        generated=round(generated * scale),
    )


def _shared(before: Sequence[object], tokens: Sequence[object]) -> int:
    """Tokens of whole blocks that two prompts begin with; at least the last token is always computed."""
    same = 0
    for mine, theirs in zip(tokens[:-1], before, strict=False):
        if mine != theirs:
            break
        same += 1
    return same // BLOCK * BLOCK
