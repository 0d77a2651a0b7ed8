"""A language model as judge: prompts, answers and scores, whatever runs the model (see `backends`)."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from sgrec_core.errors import SettingsError
from sgrec_core.hashing import hash_share
from sgrec_core.judge.engines.backends import (
    Backend,
    Chat,
    Failed,
    decoding_settings,
    is_known_to_the_server_alone,
)
from sgrec_core.judge.engines.judging_code import judging_code
from sgrec_core.judge.engines.server_backend import Server
from sgrec_core.judge.engines.tiny_model import tiny_model_fingerprint
from sgrec_core.judge.engines.vllm_backend import Vllm
from sgrec_core.judge.prompt import (
    answer_schema,
    clean,
    label_questions,
    read_answer,
    reasoning_question,
    system_message,
    user_message,
)
from sgrec_core.judge.request import NO_TEXT, JudgeRequest, JudgeResult, Usage
from sgrec_core.judge.rubric import Aspect, Rubric
from sgrec_core.settings import JudgeSettings, Settings

_PROMPT, _ENGINES = "sgrec_core.judge.prompt", "sgrec_core.judge.engines"
WORDS = (
    f"{_PROMPT}:system_message",
    f"{__name__}:chat_about",
    f"{_ENGINES}.backends:chat_tokens",
    f"{_ENGINES}.backends:fits_into",
)
ANSWERS = {
    "labels": (f"{_PROMPT}:label_questions", f"{__name__}:read_labels"),
    "reasoning": (f"{_PROMPT}:reasoning_question", f"{_PROMPT}:answer_schema", f"{__name__}:read_reasoned"),
}
DECODING = {
    ("vllm", "labels"): (f"{_ENGINES}.vllm_backend:label_sampling", f"{_ENGINES}.vllm_backend:labels_of"),
    ("vllm", "reasoning"): (f"{_ENGINES}.vllm_backend:text_sampling", f"{_ENGINES}.vllm_backend:STRUCTURED_OUTPUTS"),
    ("server", "labels"): (f"{_ENGINES}.server_backend:asked_for_labels", f"{_ENGINES}.server_backend:labels_of"),
    ("server", "reasoning"): (f"{_ENGINES}.server_backend:asked_for_text",),
}
"""What words prompts, decodes and reads answers, by engine and mode: the code that ``judge_version`` covers.

How calls are batched, sent, counted and tried again makes no other judge.
"""


class LanguageModelEngine:
    """An LLM that is asked about one (state, item) at a time, in one of two modes.

    - ``labels``: one question an aspect, of whose answer only the first token is generated. The score is the
      expectation of the level's value under the probabilities of the labels, renormalised; these are kept. Whatever
      texts say, there is no output that could leave the format.
    - ``reasoning``: one question for all aspects, answered with reasoning and levels as JSON under a schema (the form
      of S-GRec, arXiv 2602.10606). Greedy. The score is the value of the level that the model names.

    How often the model would leave the format if it were let: in ``labels`` the probability outside of the labels, in
    ``reasoning`` a share ``judge.format_sample`` of the requests is answered without the schema as well.

    A prompt that does not fit loses the older half of the history until it does; one that does not fit without any
    history fails.
    """

    resolution = 1e-3
    """Of its scores: what bfloat16 and other neighbours in a batch may move the same answer by."""

    def __init__(self, settings: Settings, rubric: Rubric):
        self.settings = settings
        self.rubric = rubric
        self.mode = settings.judge.mode
        self.backend: Backend = Vllm(settings) if settings.judge.engine == "vllm" else Server(settings)
        labels_alone = 2 * len(json.dumps({aspect.id: aspect.levels[0].label for aspect in rubric.aspects}))
        # A character is at most four tokens, and a grammar may put a blank after each: this always suffices.
        self.max_tokens = 1 if self.mode == "labels" else labels_alone + 32 + 4 * settings.judge.reasoning_characters

    @property
    def usage(self) -> Usage:
        return self.backend.usage

    @property
    def gone(self) -> str | None:
        """Why nobody answers any more, if that is so: what is still to be scored then fails at once."""
        return self.backend.gone

    def version_facts(self) -> dict[str, Any]:
        judge = self.settings.judge
        decoding = decoding_settings(judge)
        if self.mode == "reasoning":
            decoding["max_tokens"] = self.max_tokens
        return {
            "engine": judge.engine,
            "model": _model_identity(judge) | _adapter_identity(judge.adapter_folder),
            "decoding": decoding,
            "rubric": self.rubric.fingerprint,
            "code": judging_code(*WORDS, *ANSWERS[self.mode], *DECODING[judge.engine, self.mode]),
        }

    def prompts(self, request: JudgeRequest) -> list[Chat]:
        """What is asked about a request, in order."""
        return [self._chat(request, question) for question in self._questions]

    @cached_property
    def _system(self) -> str:
        return system_message(self.rubric)

    @cached_property
    def _questions(self) -> list[str]:
        if self.mode == "labels":
            return label_questions(self.rubric)
        return [reasoning_question(self.rubric)]

    def score(self, requests: list[JudgeRequest]) -> list[JudgeResult]:
        """Requests with the same state should stand side by side, so that their prompts' common part is computed once.

        Raises:
            SettingsError: the model cannot be loaded; the server cannot be reached at first, does not know the model or
                refuses the key.
        """
        results = [JudgeResult(failure=NO_TEXT)] * len(requests)
        places = [place for place, request in enumerate(requests) if clean(request.item_text, self.rubric.limits.item)]
        if places:
            answer = self._labels if self.mode == "labels" else self._reasoning
            for place, result in zip(places, answer([requests[place] for place in places]), strict=True):
                results[place] = result
        return results

    def _labels(self, requests: list[JudgeRequest]) -> Iterator[JudgeResult]:
        aspects = self.rubric.aspects
        chats = [chat for request in requests for chat in self.prompts(request)]
        labels = [tuple(aspect.value_of) for aspect in aspects] * len(requests)
        found = iter(self.backend.label_log_probs(chats, labels))
        for _ in requests:
            yield read_labels(self.rubric, [next(found) for _ in aspects])

    def _reasoning(self, requests: list[JudgeRequest]) -> Iterator[JudgeResult]:
        chats = [chat for request in requests for chat in self.prompts(request)]
        schema = answer_schema(self.rubric, self.settings.judge.reasoning_characters)
        # By hash, so that it is the same calls however a night is cut into runs and workers.
        shares = hash_share([f"{r.state_id}/{r.item_id}/{r.item_hash}" for r in requests], "judge-format")
        sampled = [place for place, share in enumerate(shares.tolist()) if share < self.settings.judge.format_sample]
        masses: dict[int, float] = {}
        for place, answer in zip(
            sampled, self.backend.complete([chats[place] for place in sampled], None, self.max_tokens), strict=True
        ):
            if not isinstance(answer, Failed):
                masses[place] = float(self._is_readable(answer))
        answers = self.backend.complete(chats, schema, self.max_tokens)
        # Greedy decoding in this process would say the same again; a server may not.
        for _ in range(self.settings.judge.retries if self.settings.judge.engine == "server" else 0):
            again = [
                place
                for place, answer in enumerate(answers)
                if not isinstance(answer, Failed) and not self._is_readable(answer)
            ]
            retried = self.backend.complete([chats[place] for place in again], schema, self.max_tokens)
            for place, answer in zip(again, retried, strict=True):
                answers[place] = answer
        for place, answer in enumerate(answers):
            yield read_reasoned(self.rubric, answer, masses.get(place))

    def _is_readable(self, answer: str) -> bool:
        try:
            read_answer(self.rubric, answer)
        except ValueError:
            return False
        return True

    def _chat(self, request: JudgeRequest, question: str) -> Chat:
        return chat_about(
            self.rubric, self._system, request, question, lambda chat: self.backend.fits(chat, self.max_tokens)
        )


def chat_about(rubric: Rubric, system: str, request: JudgeRequest, question: str, fits: Callable[[Chat], bool]) -> Chat:
    """What is asked about a request; as `fitting_chat` as to ``fits``. ``system`` is the rubric's `system_message`."""

    def words(shorter: JudgeRequest) -> Chat:
        return [
            {"role": "system", "content": system},
            {"role": "user", "content": user_message(rubric, shorter, question)},
        ]

    return fitting_chat(request, rubric, words, fits)


def read_labels(rubric: Rubric, answers: Sequence[Mapping[str, float] | Failed]) -> JudgeResult:
    """The result of a request from the log-probabilities of labels, or the failure, of each of the aspects."""
    scores, probabilities, masses, failures = [], [], [], []
    for aspect, log_probs in zip(rubric.aspects, answers, strict=True):
        if isinstance(log_probs, Failed):
            failures.append(log_probs)
            continue
        score, of_labels, mass = expected_level(aspect, log_probs)
        scores.append(score)
        probabilities += of_labels
        masses.append(mass)
    if failures:
        nobody = all(failed.unanswered for failed in failures) and len(failures) == len(answers)
        return JudgeResult(failure=clean(failures[0].reason, 500), unanswered=nobody)
    return JudgeResult(scores=scores, probabilities=probabilities, format_mass=min(masses))


def read_reasoned(rubric: Rubric, answer: str | Failed, mass: float | None) -> JudgeResult:
    """The result of a request from its reasoned answer; ``mass`` is its `format_mass`, where that was measured."""
    if isinstance(answer, Failed):
        return JudgeResult(failure=clean(answer.reason, 500), unanswered=answer.unanswered, format_mass=mass)
    try:
        scores, reasoning = read_answer(rubric, answer)
    except ValueError as error:
        return JudgeResult(failure=clean(f"{error}", 500), format_mass=mass)
    return JudgeResult(scores=scores, evidence=reasoning, format_mass=mass)


def expected_level(aspect: Aspect, log_probs: Mapping[str, float]) -> tuple[float, list[float], float]:
    """The expected value of an aspect's level, the probabilities of its labels, and what all of them had before."""
    highest = max(log_probs.values())
    weights = {label: math.exp(log_probs[label] - highest) for label in aspect.value_of}
    total = sum(weights.values())
    score = sum(aspect.value_of[label] * weight / total for label, weight in weights.items())
    return score, [weight / total for weight in weights.values()], min(1.0, total * math.exp(highest))


def fitting_chat(
    request: JudgeRequest, rubric: Rubric, words: Callable[[JudgeRequest], Chat], fits: Callable[[Chat], bool]
) -> Chat:
    """What ``words`` makes of a request, whose history loses its older half until the chat fits or none is left."""
    history = request.history_texts
    while True:
        chat = words(replace(request, history_texts=history))
        if not history or fits(chat):
            return chat
        # Of a longer history only these entries were in the prompt.
        kept = min(len(history), rubric.limits.history_entries) // 2
        history = history[len(history) - kept :]


def _model_identity(judge: JudgeSettings) -> dict[str, str | None]:
    """What tells one model's scores from another's.

    Raises:
        SettingsError: the model is neither 'tiny', nor a folder, nor a name with a pinned revision.
    """
    model, revision = judge.model, judge.revision
    if is_known_to_the_server_alone(judge):
        return {"served": judge.served_name, "revision": revision}
    if model == "tiny":
        return {"model": "tiny", "recipe": tiny_model_fingerprint()}
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise SettingsError(
                f"judge.model={model!r} is a folder without config.json; valid is a model in Hugging Face format"
            )
        # By content, not by path: a copy of the model elsewhere pays for no call twice.
        return {"files": _hash_model_files(folder)}
    if folder.is_absolute() or model.startswith("."):
        raise SettingsError(
            f"judge.model={model!r} is no folder; valid is 'tiny', a model folder, or a Hugging Face name"
        )
    if not revision:
        raise SettingsError(
            f"judge.model={model!r} is a Hugging Face name and needs a pinned revision "
            "(SGREC_JUDGE__REVISION=<commit>), or scores of different weights would pass for the same"
        )
    return {"model": model, "revision": revision}


def _adapter_identity(adapter: Path | None) -> dict[str, str]:
    """What tells one adapter's scores from another's.

    Raises:
        SettingsError: the folder holds no adapter.
    """
    if adapter is None:
        return {}
    if not (adapter / "adapter_config.json").is_file():
        raise SettingsError(
            f"judge.adapter={str(adapter)!r} has no adapter_config.json; valid is a PEFT adapter's folder"
        )
    return {"adapter": _hash_model_files(adapter)}


def _hash_model_files(folder: Path) -> str:
    """Digest of configuration, tokenizer, chat template and weights."""
    suffixes = {".json", ".jinja", ".model", ".safetensors", ".bin", ".txt"}
    files = [path for path in sorted(folder.iterdir()) if path.suffix in suffixes and path.is_file()]
    return _hash_files(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@lru_cache
def _hash_files(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Digest of files with their sizes; the times of their last change are there to read weights once in a process."""
    hasher = hashlib.blake2b(digest_size=16)
    for path, size, _ in files:
        hasher.update(path.name.encode() + b"\x00" + str(size).encode() + b"\x00")
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                hasher.update(block)
    return hasher.hexdigest()
