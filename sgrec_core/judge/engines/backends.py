"""What runs a language model: vLLM in this process, or any server with OpenAI's chat completions."""

import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from jinja2 import TemplateError

from sgrec_core.errors import SettingsError
from sgrec_core.judge.engines.tiny_model import make_tiny_model
from sgrec_core.judge.request import Usage
from sgrec_core.settings import JudgeSettings, Settings

Chat = list[dict[str, str]]
"""Messages with role and content."""
Answer = TypeVar("Answer")


LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for."""
TEMPLATE_TOKENS = 256
"""More than any chat template adds to two messages."""
CHAT_TEMPLATE_ARGUMENTS = {"enable_thinking": False}
"""Read by the templates of hybrid reasoning models, ignored by others: the answer starts at once."""

STRUCTURED_OUTPUTS = {"backend": "xgrammar", "disable_any_whitespace": True}
"""An untrained model fills JSON with blanks until its tokens are used up."""
TOP = 20
"""As many likely tokens as OpenAI's interface gives at most."""
UNSEEN = -100.0
"""Log-probability of a label that is not among them."""


@dataclass(frozen=True)
class Failed:
    """Why a chat has no answer."""

    reason: str
    unanswered: bool = False
    """Whether that is because nobody answered."""


class Backend(Protocol):
    """Answers to chats, in their order; what one chat does wrong is its own `Failed`."""

    usage: Usage
    gone: str | None
    """Why nobody answers any more; chats are then not asked about."""

    def tokens(self, chat: Chat) -> list[int] | None:
        """The prompt as the model reads it, without loading the model; None where its tokenizer is not at hand."""

    def fits(self, chat: Chat, answer_tokens: int) -> bool:
        """Whether chat and answer fit into the model's window, as far as that can be told before asking."""

    def label_log_probs(
        self, chats: Sequence[Chat], labels: Sequence[Sequence[str]]
    ) -> list[dict[str, float] | Failed]:
        """For each chat the log-probability of each of its labels as the first token of the answer."""

    def complete(self, chats: Sequence[Chat], schema: dict[str, Any] | None, max_tokens: int) -> list[str | Failed]:
        """Greedy answers of at most ``max_tokens``, bound to a JSON schema if there is one."""


def chat_tokens(tokenizer: Any, chat: Chat) -> list[int]:
    """A chat as the model reads it, up to where its answer begins."""
    found: list[int] = tokenizer.apply_chat_template(
        chat, tokenize=True, add_generation_prompt=True, return_dict=False, **CHAT_TEMPLATE_ARGUMENTS
    )
    return found


def only_token(model: str, label: str, tokens: Sequence[int]) -> int:
    """The one token of a label; SettingsError where it takes several."""
    if len(tokens) != 1:
        raise SettingsError(
            f"{model!r} writes label {label!r} with {len(tokens)} tokens; judge.mode=labels needs one;"
            " use judge.mode=reasoning"
        )
    return int(tokens[0])


# How answers are decoded: `language_model.DECODING` says which of these are part of which judge's version.


def label_sampling(tokens: list[int]) -> Any:
    """vLLM's parameters for the log-probabilities of labels as the first token of an answer."""
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, max_tokens=1, logprob_token_ids=tokens, detokenize=False)


def text_sampling(schema: dict[str, Any] | None, max_tokens: int) -> Any:
    """vLLM's parameters for a greedy answer, bound to a JSON schema if there is one."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    structured = StructuredOutputsParams(json=schema) if schema else None
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, structured_outputs=structured)


def asked_for_labels(tokens: list[int] | None) -> dict[str, Any]:
    """What a server is asked besides the chat for the log-probabilities of labels; by their tokens, where it is vLLM."""
    extra = {} if tokens is None else {"logprob_token_ids": tokens, "chat_template_kwargs": CHAT_TEMPLATE_ARGUMENTS}
    top = TOP if tokens is None else 0
    return {"temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": top, "extra_body": extra}


def asked_for_text(schema: dict[str, Any] | None, max_tokens: int, *, is_vllm: bool) -> dict[str, Any]:
    """What a server is asked besides the chat for a greedy answer, bound to a JSON schema if there is one."""
    form: dict[str, Any] = {}
    if schema is not None:
        wanted = {"name": "judgement", "schema": schema, "strict": True}
        form = {"response_format": {"type": "json_schema", "json_schema": wanted}}
    extra = {"chat_template_kwargs": CHAT_TEMPLATE_ARGUMENTS} if is_vllm else {}
    return {"temperature": 0, "max_tokens": max_tokens, "extra_body": extra, **form}


def labels_of(likely: Sequence[Any], labels: Sequence[str], *, every: bool) -> dict[str, float]:
    """Log-probabilities of labels among a server's likely tokens.

    Raises:
        ValueError: none of the labels is among them, or with ``every`` one is not.
    """
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


def is_known_to_the_server_alone(judge: JudgeSettings) -> bool:
    """Whether there is nothing but the served name to tell what the model is."""
    return served_model(judge) != judge.model == JudgeSettings().model


def served_model(judge: JudgeSettings) -> str:
    """What the model is called where it is asked."""
    return (judge.served_name if judge.engine == "server" else None) or judge.model


def model_path(settings: Settings) -> str:
    """What to load: a folder or a Hugging Face name. Makes the tiny model."""
    if settings.judge.model == "tiny":
        return str(make_tiny_model(settings.home.resolve() / "models" / "tiny-judge"))
    return settings.judge.model


class _Tokenizer:
    """The model's tokenizer and chat template, loaded when first needed."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self._loaded: Any = None

    def tokens(self, chat: Chat) -> list[int]:
        tokenizer = self._load()
        try:
            return chat_tokens(tokenizer, chat)
        except (TemplateError, ValueError) as error:
            raise SettingsError(
                f"the chat template of judge.model={self.settings.judge.model!r} does not take a system and a user"
                f" message: {error}"
            ) from None

    def encode(self, text: str) -> list[int]:
        found: list[int] = self._load().encode(text, add_special_tokens=False)
        return found

    def _load(self) -> Any:
        if self._loaded is None:
            try:
                from transformers import AutoTokenizer
            except ImportError as error:
                raise SettingsError(
                    f"the judge's tokenizer needs the package {error.name}; install it with: make env judge-env"
                ) from None
            model = model_path(self.settings)
            try:
                self._loaded = AutoTokenizer.from_pretrained(model, revision=self.settings.judge.revision)
            except (OSError, ValueError) as error:
                first = (str(error).splitlines() or [type(error).__name__])[0]
                raise SettingsError(f"no tokenizer of judge.model={self.settings.judge.model!r}: {first}") from error
        return self._loaded


def fits_into(max_model_len: int, backend: "Backend", chat: Chat, answer_tokens: int) -> bool:
    """Whether chat and answer fit into so many tokens; where nobody can count them it is taken to fit."""
    room = max_model_len - answer_tokens
    # A token is at least a byte, the template's own aside: most prompts need not be put into tokens to be seen to fit.
    if sum(len(message["content"].encode()) for message in chat) + TEMPLATE_TOKENS <= room:
        return True
    tokens = backend.tokens(chat)
    return tokens is None or len(tokens) <= room


class Vllm:
    """vLLM's offline engine. It starts with the first chat.

    Raises (by every method that asks the model):
        SettingsError: vLLM is missing, or cannot load the model, or its tokenizer has no single token for a label.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.usage = Usage()
        self.gone: str | None = None
        self._tokenizer = _Tokenizer(settings)
        self._llm: Any = None
        self._adapter: Any = None

    def tokens(self, chat: Chat) -> list[int]:
        return self._tokenizer.tokens(chat)

    def fits(self, chat: Chat, answer_tokens: int) -> bool:
        return fits_into(self.settings.judge.max_model_len, self, chat, answer_tokens)

    def label_log_probs(
        self, chats: Sequence[Chat], labels: Sequence[Sequence[str]]
    ) -> list[dict[str, float] | Failed]:
        self._start()
        tokens = {
            label: only_token(self.settings.judge.model, label, self._tokenizer.encode(label))
            for label in {label for of_chat in labels for label in of_chat}
        }
        sampling = [label_sampling([tokens[label] for label in of_chat]) for of_chat in labels]
        outputs = self._generate(chats, sampling, answer_tokens=1)
        return [
            output
            if isinstance(output, Failed)
            else {label: output.logprobs[0][tokens[label]].logprob for label in of_chat}
            for output, of_chat in zip(outputs, labels, strict=True)
        ]

    def complete(self, chats: Sequence[Chat], schema: dict[str, Any] | None, max_tokens: int) -> list[str | Failed]:
        if not chats:
            return []
        self._start()
        outputs = self._generate(chats, [text_sampling(schema, max_tokens)] * len(chats), max_tokens)
        return [output if isinstance(output, Failed) else output.text for output in outputs]

    def _generate(self, chats: Sequence[Chat], sampling: Sequence[Any], answer_tokens: int) -> list[Any]:
        """vLLM's completions."""
        room = self.settings.judge.max_model_len - answer_tokens
        tokens = [self.tokens(chat) for chat in chats]
        fitting = [place for place, prompt in enumerate(tokens) if len(prompt) <= room]
        # A warm prefix cache can change an answer by rounding; starting each call cold, a call's answers do not
        # depend on the calls before it, and a killed night that continues gives what an undisturbed one gives.
        self._llm.reset_prefix_cache()
        outputs = self._llm.generate(
            [{"prompt_token_ids": tokens[place]} for place in fitting],
            [sampling[place] for place in fitting],
            use_tqdm=False,
            lora_request=self._adapter,
        )
        answers: list[Any] = [
            Failed(f"prompt of {len(prompt)} tokens; at most {room} fit (judge.max_model_len)") for prompt in tokens
        ]
        for place, output in zip(fitting, outputs, strict=True):
            answers[place] = output.outputs[0]
            self.usage.prompt += len(tokens[place])
            self.usage.cached += output.num_cached_tokens or 0
            self.usage.generated += len(output.outputs[0].token_ids)
        return answers

    def _start(self) -> Any:
        if self._llm is not None:
            return self._llm
        judge = self.settings.judge
        cache = self.settings.home.resolve() / "models"
        model = model_path(self.settings)
        environment = {
            # In this process: killing the job leaves no engine behind, and nothing needs a second start.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_CACHE_ROOT": str(cache / "vllm-cache"),
            "OMP_NUM_THREADS": str(self.settings.threads),
            # Pinned threads wait for whatever else runs on their cores, and a night shares its machine.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
        if Path(model).is_dir():
            # A model on disk is whole; no hub is asked about it.
            environment["HF_HUB_OFFLINE"] = "1"
        for name, value in environment.items():
            os.environ.setdefault(name, value)
        try:
            import torch
            from vllm import LLM
        except ImportError as error:
            raise SettingsError(
                f"the vllm judge needs the package {error.name}, which this Python lacks; install it with "
                "`make judge-env` and point the setting SGREC_INTERPRETERS__JUDGE at .venv-judge/bin/python"
            ) from None
        on_cpu = not torch.cuda.is_available()
        try:
            self._llm = LLM(
                model=model,
                revision=judge.revision,
                seed=judge.seed,
                max_model_len=judge.max_model_len,
                tensor_parallel_size=judge.tensor_parallel,
                gpu_memory_utilization=judge.gpu_memory,
                enable_prefix_caching=True,
                # Prompts share whole blocks alone, and vLLM's are of 128 tokens on a CPU.
                block_size=32 if on_cpu else None,
                # On a CPU: a fixed cache, and no compiling, which costs more than it gives for models that one would
                # run there.
                enforce_eager=on_cpu,
                kv_cache_memory_bytes=int(judge.kv_cache_gib * 2**30) if on_cpu else None,
                structured_outputs_config=STRUCTURED_OUTPUTS,
                disable_log_stats=True,
                **self._lora(judge.adapter_folder),
            )
        except (OSError, ValueError) as error:
            # What is wrong with the model; out of memory or a broken driver is a crash, and tried again.
            lines = str(error).splitlines() or [type(error).__name__]
            raise SettingsError(f"vLLM cannot load judge.model={judge.model!r}: {lines[0]}") from error
        return self._llm

    def _lora(self, adapter: Path | None) -> dict[str, Any]:
        """What vLLM needs to know of the adapter."""
        if adapter is None:
            return {}
        from vllm.lora.request import LoRARequest

        self._adapter = LoRARequest("judge", 1, str(adapter.resolve()))
        rank = int(json.loads((adapter / "adapter_config.json").read_text())["r"])
        return {"enable_lora": True, "max_lora_rank": next(size for size in LORA_RANKS if size >= rank)}


class Server:
    """A server with OpenAI's chat completions under ``judge.server_url``; the key is OPENAI_API_KEY, where one is needed.

    Calls run side by side, ``judge.concurrency`` at once, each with ``judge.timeout`` seconds and ``judge.retries``
    further tries. When many calls in a row have no answer, the others are not made (``gone``). Of `vllm serve` it uses the
    route that tells a label's token and asks for the log-probabilities of exactly the labels; from another server it takes
    the 20 likeliest tokens, where a label that is missing counts as impossible.

    Raises (by every method that asks the model):
        SettingsError: the server cannot be reached when the work begins, does not know the model, or wants another key.
    """

    SILENCE = 32
    """So many calls in a row without an answer, or twice ``judge.concurrency`` if that is more, and the server is gone."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.usage = Usage()
        self.gone: str | None = None
        self._silent = 0
        self._tokenizer = None if is_known_to_the_server_alone(settings.judge) else _Tokenizer(settings)
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
            return labels_of(response.choices[0].logprobs.content[0].top_logprobs, of_chat, every=self._is_vllm)

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
