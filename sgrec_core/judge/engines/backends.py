"""What a language model is asked through (`Backend`), and what the settings call the model.

The backends themselves: `vllm_backend` for nights in this process, `server_backend` for any server with OpenAI's chat
completions, `transformers_backend` for measuring.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jinja2 import TemplateError

from sgrec_core.errors import SettingsError
from sgrec_core.judge.engines.tiny_model import make_tiny_model
from sgrec_core.judge.request import Usage
from sgrec_core.settings import JudgeSettings, Settings

Chat = list[dict[str, str]]
"""Messages with role and content."""

TEMPLATE_TOKENS = 256
"""More than any chat template adds to two messages."""
CHAT_TEMPLATE_ARGUMENTS = {"enable_thinking": False}
"""Read by the templates of hybrid reasoning models, ignored by others: the answer starts at once."""


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


def is_known_to_the_server_alone(judge: JudgeSettings) -> bool:
    """Whether there is nothing but the served name to tell what the model is."""
    return served_model(judge) != judge.model == JudgeSettings().model


def decoding_settings(judge: JudgeSettings) -> dict[str, Any]:
    """Of how a language model is asked, the settings that its scores depend on: with the model they make the judge."""
    settings: dict[str, Any] = {"mode": judge.mode}
    if judge.mode == "reasoning":
        settings["reasoning_characters"] = judge.reasoning_characters
    if not is_known_to_the_server_alone(judge):
        # Histories are cut until the prompt fits.
        settings["max_model_len"] = judge.max_model_len
    return settings


def served_model(judge: JudgeSettings) -> str:
    """What the model is called where it is asked."""
    return (judge.served_name if judge.engine == "server" else None) or judge.model


def model_path(settings: Settings) -> str:
    """What to load: a folder or a Hugging Face name. Makes the tiny model."""
    if settings.judge.model == "tiny":
        return str(make_tiny_model(settings.home.resolve() / "models" / "tiny-judge"))
    return settings.judge.model


class ModelTokenizer:
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


def fits_into(max_model_len: int, backend: Backend, chat: Chat, answer_tokens: int) -> bool:
    """Whether chat and answer fit into so many tokens; where nobody can count them it is taken to fit."""
    room = max_model_len - answer_tokens
    # A token is at least a byte, the template's own aside: most prompts need not be put into tokens to be seen to fit.
    if sum(len(message["content"].encode()) for message in chat) + TEMPLATE_TOKENS <= room:
        return True
    tokens = backend.tokens(chat)
    return tokens is None or len(tokens) <= room
