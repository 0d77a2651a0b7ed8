"""From a request to chat messages. Item and user texts are data: cleaned, bounded and fenced in.

The fence is made of tags, and no text can forge one: ``<``, ``>``, ``[`` and ``]`` are replaced by look-alikes, which
also breaks the chat markers of every model family that we know (``<|im_end|>``, ``</s>``, ``<start_of_turn>``,
``[INST]``).
"""

import json
import re
import unicodedata
from functools import lru_cache
from typing import Any

from sgrec_core.judge.request import JudgeRequest
from sgrec_core.judge.rubric import Aspect, Rubric

REASONING = "reasoning"
"""The key of the reasoning in an answer."""
IMPORTANCE = "ABCDE"
"""Letters of importance, from what decides to what does not count."""

_BIDIRECTIONAL = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
"""Classes of the characters that turn the direction of text."""
_LOOK_ALIKES = str.maketrans({"<": "‹", ">": "›", "[": "(", "]": ")"})


@lru_cache(maxsize=1 << 16)  # a state's texts come again with each of its candidates and aspects
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


_SIGNS = {
    "markup": re.compile(r"[<>\[\]]"),
    "chat marker": re.compile(
        r"<[/| ]{0,4}\w[\w |]{0,40}>|\[/?(INST|SYS|AVAILABLE_TOOLS)\]|<</?SYS>>"
        r"|(^|\n)\W{0,4}(system|assistant|user|human|developer|instruction|response)\W{0,3}:",
        re.IGNORECASE,
    ),
    "JSON": re.compile(r"""["']\s*:\s*\\?["'\[{0-9]|\{\s*["']"""),
    "instruction": re.compile(
        r"(?i:\b(ignore|disregard|forget|override|bypass)\b.{0,30}"
        r"\b(previous|prior|above|earlier|everything|history|rubric|rules|instructions?)\b)"
        r"|(?i:\b(rubric|system prompt|evaluator|language model|as an ai|the judge|previous instructions)\b)"
        r"|(?i:\b(answer|reply|respond|rate|output|print|select|choose|pick|give|score)\b).{0,40}"
        r"\b(A|s[0-3]|(?i:highest|best|top) (?i:level|score)|1\.0)(?=\W|$)"
        r"|(?i:\bs[0-3]\s*[=:])|(?i:\blevel) A\b",
    ),
    "label": re.compile(r"^\W*[A-E]\W*$|\b([A-E])\b(\W+\1\b){2,}"),
}


def flags(text: str, limit: int) -> list[str]:
    """What is suspicious about a text that reaches the judge: for people to look at, not a filter.

    Every text is cleaned in the same way, flagged or not. One or more of: ``control character``, ``bidirectional``,
    ``invisible``, ``markup``, ``chat marker``, ``JSON``, ``instruction`` (English words for it), ``label``, ``long``
    (more than four times what is kept).
    """
    raw = text[: 4 * limit]
    found = []
    if any(unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\n\r" for character in raw):
        found.append("control character")
    if any(unicodedata.bidirectional(character) in _BIDIRECTIONAL for character in raw):
        found.append("bidirectional")
    if any(
        unicodedata.category(character) in ("Cf", "Co", "Cn")
        and unicodedata.bidirectional(character) not in _BIDIRECTIONAL
        for character in raw
    ):
        found.append("invisible")
    # What is invisible may stand in the midst of a word that is looked for.
    visible = "".join(
        character
        for character in unicodedata.normalize("NFKC", raw)
        if character in "\t\n\r" or unicodedata.category(character)[0] != "C"
    )
    found += [name for name, sign in _SIGNS.items() if sign.search(visible)]
    if len(text) > 4 * limit:
        found.append("long")
    return found


def describe(document: str | None, limit: int) -> str | None:
    """A canonical JSON document (profile, context) as ``key: value`` lines; None when there is nothing in it.

    Text that is not JSON is taken as it stands.
    """
    if document is None or not document.strip():
        return None
    try:
        tree = json.loads(document)
    except (ValueError, RecursionError):
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


def texts_of(document: str | None) -> str:
    """Keys and values of a JSON document (profile, context), a line each, as they came: for `flags`."""
    if document is None:
        return ""
    try:
        tree = json.loads(document)
    except (ValueError, RecursionError):
        return document
    found: list[str] = []
    left = [tree]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            found += node.keys()
            left += node.values()
        elif isinstance(node, list):
            left += node
        elif isinstance(node, str):
            found.append(node)
    return "\n".join(found)


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
    return _fill(rubric.prompt.system, {"aspects": aspects})


def label_question(rubric: Rubric, aspect: Aspect) -> str:
    """Asks for the level of one aspect as one letter."""
    words = {"id": aspect.id, "title": aspect.title, "labels": ", ".join(aspect.value_of)}
    return _fill(rubric.prompt.label_question, words)


def label_questions(rubric: Rubric) -> list[str]:
    """One question an aspect, in the order in which scores are given."""
    return [label_question(rubric, aspect) for aspect in rubric.aspects]


def reasoning_question(rubric: Rubric) -> str:
    """Asks for the reasoning and all levels as one JSON object."""
    example = {REASONING: "..."} | {aspect.id: aspect.levels[0].label for aspect in rubric.aspects}
    return _fill(rubric.prompt.reasoning_question, {"example": json.dumps(example, separators=(",", ":"))})


def user_message(rubric: Rubric, request: JudgeRequest, question: str) -> str:
    """User state first, then the item, the question last, so that requests of one state share the longer part."""
    parts = {**_state(rubric, request), "item": clean(request.item_text, rubric.limits.item), "question": question}
    return _fill(rubric.prompt.user, {name: text or rubric.prompt.absent for name, text in parts.items()})


def weights_messages(rubric: Rubric, request: JudgeRequest) -> list[dict[str, str]]:
    """Asks how much each aspect counts in the state of ``request``; its item is not shown (S-GRec, PSJ part B)."""
    aspects = "\n".join(f"{aspect.id}, {aspect.title}. {aspect.question}" for aspect in rubric.aspects)
    parts = {**_state(rubric, request), "ids": ", ".join(rubric.aspect_ids)}
    user = _fill(rubric.prompt.weights_user, {name: text or rubric.prompt.absent for name, text in parts.items()})
    return [
        {"role": "system", "content": _fill(rubric.prompt.weights_system, {"aspects": aspects})},
        {"role": "user", "content": user},
    ]


def read_weights(rubric: Rubric, text: str) -> list[float] | None:
    """Weights of the aspects, which sum to 1, from letters of importance; None where the answer is not in the form.

    Five levels an aspect, a weight proportional to level + 1e-3.
    """
    letters = text.split()
    if len(letters) != len(rubric.aspects) or any(letter not in tuple(IMPORTANCE) for letter in letters):
        return None
    levels = [len(IMPORTANCE) - 1 - IMPORTANCE.index(letter) + 1e-3 for letter in letters]
    return [level / sum(levels) for level in levels]


def _state(rubric: Rubric, request: JudgeRequest) -> dict[str, str | None]:
    limits = rubric.limits
    entries = request.history_texts[-limits.history_entries :] if limits.history_entries else ()
    history = [clean(text, limits.history_entry) for text in entries]
    return {
        "profile": describe(request.profile, limits.profile),
        "context": describe(request.context, limits.context),
        "history": "\n".join(f"{number}. {text}" for number, text in enumerate(history, 1)),
    }


def _fill(template: str, words: dict[str, str]) -> str:
    """``template`` with each {name} replaced; in one pass, because the words may hold braces of their own."""
    return re.sub(r"\{(\w+)\}", lambda found: words.get(found[1], found[0]), template).strip()


def answer_schema(rubric: Rubric, reasoning_characters: int) -> dict[str, Any]:
    """The JSON schema of a reasoned answer: the reasoning first, then one level label an aspect, nothing else."""
    properties: dict[str, Any] = {REASONING: {"type": "string", "maxLength": reasoning_characters}}
    properties |= {aspect.id: {"type": "string", "enum": list(aspect.value_of)} for aspect in rubric.aspects}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def read_answer(rubric: Rubric, text: str) -> tuple[list[float], str]:
    """The scores in an answer, in the order of ``rubric.aspects``, and the reasoning, cleaned.

    Raises:
        ValueError: the text is not an answer in the schema; the message says what is wrong.
    """
    try:
        # Grammars for texts of bounded length let control characters through; `clean` takes them out.
        answer = json.loads(text, strict=False)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    names = [REASONING, *rubric.aspect_ids]
    if not isinstance(answer, dict) or set(answer) != set(names):
        raise ValueError(f"expected an object with the keys {names}")
    if not isinstance(answer[REASONING], str):
        raise ValueError(f"{REASONING} is no text")
    scores = []
    for aspect in rubric.aspects:
        label = answer[aspect.id]
        if not isinstance(label, str) or label not in aspect.value_of:
            raise ValueError(f"{aspect.id} is {label!r}, not one of {sorted(aspect.value_of)}")
        scores.append(aspect.value_of[label])
    return scores, clean(answer[REASONING], len(answer[REASONING]))
