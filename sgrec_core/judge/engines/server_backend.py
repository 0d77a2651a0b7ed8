"""Any server with OpenAI's chat completions."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from sgrec_core.errors import SettingsError
from sgrec_core.judge.engines.backends import (
    CHAT_TEMPLATE_ARGUMENTS,
    Chat,
    Failed,
    ModelTokenizer,
    fits_into,
    is_known_to_the_server_alone,
    only_token,
    served_model,
)
from sgrec_core.judge.request import Usage
from sgrec_core.settings import Settings

Answer = TypeVar("Answer")
TOP = 20
"""As many likely tokens as OpenAI's interface gives at most."""
UNSEEN = -100.0
"""Log-probability of a label that is not among them."""


# How answers are decoded and read: `language_model.DECODING` makes these part of the judge's version.


def asked_for_labels(tokens: list[int] | None) -> dict[str, Any]:
    """What is asked besides the chat for the log-probabilities of labels; by their tokens, where the server is vLLM."""
    extra = {} if tokens is None else {"logprob_token_ids": tokens, "chat_template_kwargs": CHAT_TEMPLATE_ARGUMENTS}
    top = TOP if tokens is None else 0
    return {"temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": top, "extra_body": extra}


def asked_for_text(schema: dict[str, Any] | None, max_tokens: int, *, is_vllm: bool) -> dict[str, Any]:
    """What is asked besides the chat for a greedy answer, bound to a JSON schema if there is one."""
    form: dict[str, Any] = {}
    if schema is not None:
        wanted = {"name": "judgement", "schema": schema, "strict": True}
        form = {"response_format": {"type": "json_schema", "json_schema": wanted}}
    extra = {"chat_template_kwargs": CHAT_TEMPLATE_ARGUMENTS} if is_vllm else {}
    return {"temperature": 0, "max_tokens": max_tokens, "extra_body": extra, **form}


def labels_of(response: Any, labels: Sequence[str], *, every: bool) -> dict[str, float]:
    """Log-probabilities of labels among the likely first tokens of an answer.

    Raises:
        ValueError: none of the labels is among them, or with ``every`` one is not.
    """
    likely = response.choices[0].logprobs.content[0].top_logprobs
    found: dict[str, float] = {}
    for entry in likely:
        # " A" is A to a reader.
        name = entry.token.strip()
        found[name] = float(np.logaddexp(found.get(name, -np.inf), entry.logprob))
    missing = [label for label in labels if label not in found]
    if len(missing) == len(labels) or (missing and every):
        likeliest = ", ".join(repr(entry.token) for entry in likely[:3])
        raise ValueError(f"no probability of {', '.join(missing)}; the likeliest tokens are {likeliest}")
    return {label: found.get(label, UNSEEN) for label in labels}


class Server:
    """A server with OpenAI's chat completions under ``judge.server_url``; the key, if any, is OPENAI_API_KEY.

    Calls run side by side, ``judge.concurrency`` at once, each with ``judge.timeout`` seconds and ``judge.retries``
    further tries. When many calls in a row have no answer, the others are not made (``gone``). Of `vllm serve` it uses
    the route that tells a label's token and asks for the log-probabilities of exactly the labels; from another server
    it takes the 20 likeliest tokens, where a label that is missing counts as impossible.

    Raises (by every method that asks the model):
        SettingsError: the server cannot be reached when the work begins, does not know the model, or wants another key.
    """

    SILENCE = 32
    """So many calls in a row without an answer, or twice ``judge.concurrency`` if that is more: the server is gone."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.usage = Usage()
        self.gone: str | None = None
        self._silent = 0
        self._tokenizer = None if is_known_to_the_server_alone(settings.judge) else ModelTokenizer(settings)
        self._client: Any = None
        self._is_vllm = False
        self._label_tokens: dict[str, int] = {}
        self._counting = threading.Lock()

    def tokens(self, chat: Chat) -> list[int] | None:
        if self._tokenizer is None:
            return None
        try:
            return self._tokenizer.tokens(chat)
        except SettingsError:
            # Not asked for again: an attempt may take seconds.
            self._tokenizer = None
            return None

    def fits(self, chat: Chat, answer_tokens: int) -> bool:
        # Without its tokenizer the server counts tokens, and its refusal is the failure.
        return fits_into(self.settings.judge.max_model_len, self, chat, answer_tokens)

    def label_log_probs(
        self, chats: Sequence[Chat], labels: Sequence[Sequence[str]]
    ) -> list[dict[str, float] | Failed]:
        self._connect()
        if self._is_vllm:
            for label in {label for of_chat in labels for label in of_chat} - self._label_tokens.keys():
                self._label_tokens[label] = self._label_token(label)

        def ask(numbered: tuple[Chat, Sequence[str]]) -> dict[str, float]:
            chat, of_chat = numbered
            tokens = [self._label_tokens[label] for label in of_chat] if self._is_vllm else None
            response = self._client.chat.completions.create(
                model=self._model, messages=chat, **asked_for_labels(tokens)
            )
            self._count(response)
            return labels_of(response, of_chat, every=self._is_vllm)

        return self._in_parallel(ask, list(zip(chats, labels, strict=True)))

    def complete(self, chats: Sequence[Chat], schema: dict[str, Any] | None, max_tokens: int) -> list[str | Failed]:
        self._connect()
        form = asked_for_text(schema, max_tokens, is_vllm=self._is_vllm)

        def ask(chat: Chat) -> str:
            response = self._client.chat.completions.create(model=self._model, messages=chat, **form)
            self._count(response)
            return response.choices[0].message.content or ""

        return self._in_parallel(ask, chats)

    def _in_parallel(self, ask: Callable[[Any], Answer], chats: Sequence[Any]) -> list[Answer | Failed]:
        import openai

        def careful(chat: Any) -> Answer | Failed:
            if self.gone:
                return Failed(self.gone, unanswered=True)
            answer = ask_once(chat)
            with self._counting:
                if not (isinstance(answer, Failed) and answer.unanswered):
                    self._silent = 0
                else:
                    self._silent += 1
                    if self._silent >= max(self.SILENCE, 2 * self.settings.judge.concurrency):
                        self.gone = answer.reason
            return answer

        def ask_once(chat: Any) -> Answer | Failed:
            try:
                return ask(chat)
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                raise SettingsError(f"{self._place}: {error.message}") from None
            except openai.APITimeoutError:
                return Failed(f"no answer within {self.settings.judge.timeout:g} s", unanswered=True)
            except openai.APIConnectionError as error:
                return Failed(f"server gone: {error.__cause__ or error}", unanswered=True)
            except openai.APIStatusError as error:
                # A refusal is an answer, and the next one would be the same; what is busy or broken may recover.
                refused = error.status_code < 500 and error.status_code not in (408, 409, 429)
                return Failed(f"server: {error.message}", unanswered=not refused)
            except openai.APIError as error:
                return Failed(f"server: {error.message}", unanswered=True)
            except (AttributeError, IndexError, TypeError, ValueError) as error:
                return Failed(f"malformed response: {type(error).__name__}: {error}")

        # Threads, not asyncio: the job around is plain code, and waiting is all that they do.
        with ThreadPoolExecutor(self.settings.judge.concurrency) as pool:
            answers = list(pool.map(careful, chats))
        silent = [answer for answer in answers if isinstance(answer, Failed) and answer.unanswered]
        if not self.gone and silent and len(silent) == len(answers):
            # A few calls that all failed: because of what they ask, or because nobody is there?
            try:
                self._client.models.list()
            except openai.APIError:
                self.gone = silent[0].reason
        return answers

    def _count(self, response: Any) -> None:
        if response.usage is None:
            return
        details = response.usage.prompt_tokens_details
        with self._counting:
            self.usage.prompt += response.usage.prompt_tokens
            self.usage.cached += (details.cached_tokens or 0) if details else 0
            self.usage.generated += response.usage.completion_tokens

    @property
    def _place(self) -> str:
        return f"judge.server_url={self.settings.judge.server_url!r}"

    @property
    def _model(self) -> str:
        return served_model(self.settings.judge)

    def _connect(self) -> None:
        if self._client is not None:
            return
        try:
            import openai
        except ImportError as error:
            raise SettingsError(f"the server judge needs the package {error.name}; install it with: make env") from None
        judge = self.settings.judge
        client = openai.OpenAI(
            base_url=judge.server_url,
            api_key=os.environ.get("OPENAI_API_KEY", "none"),
            timeout=judge.timeout,
            max_retries=judge.retries,
        )
        try:
            served = {model.id: model for model in client.models.list()}
        except openai.APIError as error:
            raise SettingsError(f"{self._place} does not answer: {error.__cause__ or error.message}") from None
        if self._model not in served:
            raise SettingsError(
                f"{self._place} does not serve {self._model!r}; it serves {', '.join(sorted(served)) or 'nothing'}"
                " (SGREC_JUDGE__SERVED_NAME)"
            )
        self._is_vllm = getattr(served[self._model], "owned_by", "") == "vllm"
        self._client = client

    def _label_token(self, label: str) -> int:
        root = str(self.settings.judge.server_url).rstrip("/").removesuffix("/v1")
        body = {"model": self._model, "prompt": label, "add_special_tokens": False}
        tokens = self._client.with_options(base_url=root).post("/tokenize", body=body, cast_to=object)["tokens"]
        return only_token(self._model, label, tokens)
