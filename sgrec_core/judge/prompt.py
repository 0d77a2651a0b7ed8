"""From a request to chat messages. Item and user texts are data: cleaned, bounded and fenced in.

The fence is made of tags, and no text can forge one: ``<``, ``>``, ``[`` and ``]`` are replaced by look-alikes, which
also breaks the chat markers of every model family that we know (``<|im_end|>``, ``</s>``, ``<start_of_turn>``,
``[INST]``).
"""

import json
import unicodedata
from typing import Any

from sgrec_core.judge.rubric import Rubric

_LOOK_ALIKES = str.maketrans({"<": "‹", ">": "›", "[": "(", "]": ")"})


def clean(text: str, limit: int) -> str:
    """One line of at most ``limit`` characters without control, bidirectional, zero-width or marker characters.

    Compatibility forms are folded first (NFKC), so that a full-width ``＜`` is caught as well. Idempotent up to the
    cut.
    """
    # Four times the limit is more than folding and dropping can use up in honest text, and it bounds the work on 100
    # kB of it.
    folded = unicodedata.normalize("NFKC", text[: 4 * limit])
    # Categories C*: control, format (bidi, zero-width), surrogate, private use, unassigned. Z*: every kind of space.
    kept = "".join(
        " " if character in "\t\n\r\v\f" or unicodedata.category(character)[0] == "Z" else character
        for character in folded
        if character in "\t\n\r\v\f" or unicodedata.category(character)[0] != "C"
    )
    line = " ".join(kept.translate(_LOOK_ALIKES).split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def describe(document: str | None, limit: int) -> str | None:
    """A canonical JSON document (profile, context) as ``key: value`` lines; None when there is nothing in it.

    Text that is not JSON is taken as it stands.
    """
    if document is None or not document.strip():
        return None
    try:
        tree = json.loads(document)
    except ValueError:
        tree = document
    lines = list(_lines("", tree))
    described = []
    for line in lines:
        cleaned = clean(line, limit)
        if cleaned:
            described.append(cleaned)
            limit -= len(cleaned) + 1
        if limit < 2:
            break
    return "\n".join(described) or None


def _lines(name: str, tree: Any) -> Any:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _lines(f"{name} {key}".strip(), value)
    elif isinstance(tree, list):
        yield from _lines(name, ", ".join(str(value) for value in tree))
    elif tree is not None and str(tree):
        yield f"{name}: {tree}" if name else str(tree)


def system_message(rubric: Rubric) -> str:
    """The rubric in words: the same for every request of a run, so that its computation is shared."""
    aspects = "\n\n".join(
        f"{aspect.id}, {aspect.title}. {aspect.question}\n"
        + "\n".join(f"  {level.label}: {level.meaning}" for level in aspect.levels)
        for aspect in rubric.aspects
    )
    example = json.dumps({aspect.id: aspect.levels[0].label for aspect in rubric.aspects}, separators=(",", ":"))
    # Replaced one by one rather than formatted: the texts hold braces of their own.
    return rubric.system_prompt.replace("{aspects}", aspects).replace("{example}", example).strip()


def user_message(
    rubric: Rubric, *, profile: str | None, context: str | None, history_texts: list[str], item_text: str
) -> str:
    """User state first, item last, so that requests of one state share the longer part."""
    limits = rubric.limits
    history = [clean(text, limits.history_entry) for text in history_texts[-limits.history_entries :]]
    parts = {
        "profile": describe(profile, limits.profile),
        "context": describe(context, limits.context),
        "history": "\n".join(f"{number}. {text}" for number, text in enumerate(history, 1)),
        "item": clean(item_text, limits.item),
    }
    head, *rest = rubric.user_prompt.split("{")
    message = head
    for piece in rest:
        name, _, tail = piece.partition("}")
        message += (parts[name] or rubric.absent) + tail
    return message.strip()


def answer_schema(rubric: Rubric) -> dict[str, Any]:
    """The JSON schema of an answer: one level label an aspect, nothing else."""
    properties = {aspect.id: {"type": "string", "enum": list(aspect.value_of)} for aspect in rubric.aspects}
    return {
        "type": "object",
        "properties": properties,
        "required": rubric.aspect_ids,
        "additionalProperties": False,
    }


def read_answer(rubric: Rubric, text: str) -> list[float]:
    """The scores in an answer, in the order of ``rubric.aspects``.

    Raises:
        ValueError: the text is not an answer in the schema; the message says what is wrong.
    """
    try:
        answer = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(answer, dict) or set(answer) != set(rubric.aspect_ids):
        raise ValueError(f"expected an object with the keys {rubric.aspect_ids}")
    scores = []
    for aspect in rubric.aspects:
        label = answer[aspect.id]
        if not isinstance(label, str) or label not in aspect.value_of:
            raise ValueError(f"{aspect.id} is {label!r}, not one of {sorted(aspect.value_of)}")
        scores.append(aspect.value_of[label])
    return scores
