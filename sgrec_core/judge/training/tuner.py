"""Training of a language-model judge: LoRA adapters by TRL (S-GRec, arXiv 2602.10606).

- Part A, aspects: supervised on labels, then GRPO with the aspect reward.
- Part B, weights: supervised on the form of the answer alone, then GRPO with the reward 1[s_hol(x,a) > s_hol(x,b)] on pairs of
  which a is preferred.

The prompts are those of `LanguageModelEngine` in mode ``labels``: a completion is one letter. Each stage gives an adapter
folder (safetensors and JSON) that vLLM loads beside the base model.
"""

import contextlib
import random
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sgrec_core.judge.engines.backends import CHAT_TEMPLATE_ARGUMENTS, Chat, Failed, chat_tokens, fits_into, only_token
from sgrec_core.judge.engines.language_model import LanguageModelEngine, fitting_chat
from sgrec_core.judge.prompt import IMPORTANCE, label_question, read_weights, weights_messages
from sgrec_core.judge.request import JudgeRequest, Usage
from sgrec_core.judge.rubric import Aspect, Rubric
from sgrec_core.settings import JudgeSettings, JudgeTrainingSettings, Settings


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A request and the true level of each aspect."""

    request: JudgeRequest
    labels: tuple[str, ...]
    """In the order of the rubric's aspects."""


@dataclass(frozen=True, kw_only=True)
class Preference:
    """Two requests in one state, of whose items the first is preferred."""

    preferred: JudgeRequest
    other: JudgeRequest
    user_id: str = ""


@dataclass(frozen=True, kw_only=True)
class ScoredPair:
    """A preference with its items' aspect scores, as a judge gives them."""

    state: JudgeRequest
    preferred: tuple[float, ...]
    other: tuple[float, ...]
    user_id: str = ""


class Tuner:
    """One base model and the stages that adapt it; ``model`` is a PEFT model whose adapter ``default`` is trained.

    Prompts that are longer than ``max_model_len`` lose the older part of the history, as in nights.

    Raises:
        OSError: ``base`` is no model.
    """

    def __init__(
        self,
        base: str | Path,
        rubric: Rubric,
        config: JudgeTrainingSettings,
        *,
        adapter: Path | None = None,
        revision: str | None = None,
        max_model_len: int = JudgeSettings().max_model_len,
    ):
        from peft import LoraConfig, PeftModel, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.rubric, self.config, self.max_model_len = rubric, config, max_model_len
        torch.manual_seed(config.seed)
        self.tokenizer = AutoTokenizer.from_pretrained(base, revision=revision)
        with _quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(base, revision=revision)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        if adapter is None:
            lora = LoraConfig(
                r=config.rank, lora_alpha=2 * config.rank, target_modules="all-linear", task_type="CAUSAL_LM"
            )
            self.model: Any = get_peft_model(model, lora)
        else:
            self.model = PeftModel.from_pretrained(model, adapter, is_trainable=True)

    def save(self, folder: Path) -> Path:
        """Write the adapter: ``adapter_model.safetensors`` and ``adapter_config.json``."""
        self.model.save_pretrained(str(folder), selected_adapters=["default"])
        return folder

    def supervise_labels(self, samples: Sequence[Labelled]) -> None:
        """Part A, first stage: the letter of each label as the answer to its question."""
        self._supervise(
            {"prompt": prompt, "completion": [{"role": "assistant", "content": label}]}
            for prompt, _, label in self._questions(samples)
        )

    def reinforce_labels(self, samples: Sequence[Labelled]) -> None:
        """Part A, second stage: GRPO with `aspect_reward`."""
        aspects = {aspect.id: aspect for aspect in self.rubric.aspects}

        def reward(completions: list[Any], aspect: list[str], label: list[str], **_: Any) -> list[float]:
            answers = [_text(completion) for completion in completions]
            return [
                aspect_reward(aspects[name], answer, truth)
                for name, answer, truth in zip(aspect, answers, label, strict=True)
            ]

        rows = [
            {"prompt": prompt, "aspect": aspect.id, "label": label}
            for prompt, aspect, label in self._questions(samples)
        ]
        self._reinforce(rows, reward, group=self.config.group_size, tokens=1)

    def supervise_form_of_weights(self, states: Sequence[JudgeRequest]) -> None:
        """Part B, first stage: letters drawn at random, so that answers have the form and prefer nothing."""
        draw = random.Random(self.config.seed)
        self._supervise(
            {
                "prompt": self._weights_chat(state),
                "completion": [
                    {"role": "assistant", "content": " ".join(draw.choices(IMPORTANCE, k=len(self.rubric.aspects)))}
                ],
            }
            for state in states
        )

    def reinforce_weights(self, pairs: Sequence[ScoredPair]) -> None:
        """Part B, second stage: GRPO with the indicator reward."""

        def reward(
            completions: list[Any], preferred: list[list[float]], other: list[list[float]], **_: Any
        ) -> list[float]:
            return [
                order_reward(self.rubric, _text(completion), better, worse)
                for completion, better, worse in zip(completions, preferred, other, strict=True)
            ]

        rows = [
            {
                "prompt": self._weights_chat(pair.state),
                "preferred": list(pair.preferred),
                "other": list(pair.other),
            }
            for pair in pairs
        ]
        self._reinforce(rows, reward, group=self.config.weights_group_size, tokens=self._weights_tokens)

    def weights(self, states: Sequence[JudgeRequest]) -> np.ndarray:
        """Weights [N, A] of the greedy answers; uniform where an answer is not in the form."""
        return or_uniform(self.answered_weights(states))

    def answered_weights(self, states: Sequence[JudgeRequest]) -> np.ndarray:
        """Weights [N, A] of the greedy answers; NaN where an answer is not in the form."""
        answers = self._backend().complete([self._weights_chat(state) for state in states], None, self._weights_tokens)
        weights = np.full((len(states), len(self.rubric.aspects)), np.nan)
        for row, answer in zip(weights, answers, strict=True):
            row[:] = read_weights(self.rubric, str(answer)) or np.nan
        return weights

    def engine(self) -> LanguageModelEngine:
        """The judge as the pipeline would run it, on the model as it is."""
        settings = Settings()
        judge = settings.judge.model_copy(update={"engine": "server", "mode": "labels"})
        engine = LanguageModelEngine(settings.model_copy(update={"judge": judge}), self.rubric)
        engine.backend = self._backend()
        return engine

    def _backend(self) -> "Transformers":
        return Transformers(self.model, self.tokenizer, self.max_model_len)

    @property
    def _weights_tokens(self) -> int:
        """Of the answer that names weights."""
        return 2 * len(self.rubric.aspects)

    def _weights_chat(self, state: JudgeRequest) -> Chat:
        backend = self._backend()
        return fitting_chat(
            state,
            self.rubric,
            lambda shorter: weights_messages(self.rubric, shorter),
            lambda chat: backend.fits(chat, self._weights_tokens),
        )

    def _questions(self, samples: Sequence[Labelled]) -> Iterator[tuple[Chat, Aspect, str]]:
        engine = self.engine()
        for sample in samples:
            for chat, aspect, label in zip(
                engine.prompts(sample.request), self.rubric.aspects, sample.labels, strict=True
            ):
                assert chat[-1]["content"].endswith(label_question(self.rubric, aspect))
                yield chat, aspect, label

    def _supervise(self, rows: Iterator[dict[str, Any]]) -> None:
        fine_tune(
            self.model,
            self.tokenizer,
            rows,
            epochs=self.config.sft_epochs,
            learning_rate=self.config.sft_learning_rate,
            batch_size=self.config.sft_batch_size,
            seed=self.config.seed,
        )

    def _reinforce(self, rows: list[dict[str, Any]], reward: Any, *, group: int, tokens: int) -> None:
        from datasets import Dataset
        from transformers import PrinterCallback
        from trl import GRPOConfig, GRPOTrainer

        with _quiet(), tempfile.TemporaryDirectory() as scratch:
            arguments = GRPOConfig(
                output_dir=scratch,
                **_arguments(
                    epochs=self.config.grpo_epochs,
                    learning_rate=self.config.grpo_learning_rate,
                    # Fewer prompts than a batch has groups would make no step at all.
                    batch_size=min(self.config.grpo_batch_size, group * len(rows)),
                    seed=self.config.seed,
                ),
                num_generations=group,
                max_completion_length=tokens,
                epsilon=self.config.clip,
                beta=self.config.kl_weight,
                loss_type="grpo",
                # Not the group's: an answer that is seldom right would count the more for being so.
                scale_rewards="batch",
                chat_template_kwargs=CHAT_TEMPLATE_ARGUMENTS,
            )
            trainer = GRPOTrainer(
                model=self.model,
                reward_funcs=reward,
                args=arguments,
                train_dataset=Dataset.from_list(rows),
                processing_class=self.tokenizer,
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        with contextlib.suppress(KeyError, ValueError):
            # The copy that the KL penalty was measured against.
            self.model.delete_adapter("ref")


def fine_tune(
    model: Any,
    tokenizer: Any,
    rows: Iterable[dict[str, Any]],
    *,
    epochs: float,
    learning_rate: float,
    batch_size: int,
    seed: int,
    completions_only: bool = True,
) -> None:
    """Supervised training of ``model`` on rows of chats, prompt and completion; ``completions_only`` are predicted."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    with _quiet(), tempfile.TemporaryDirectory() as scratch:
        arguments = SFTConfig(
            output_dir=scratch,
            **_arguments(epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, seed=seed),
            max_length=None,
            completion_only_loss=completions_only,
        )
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list([{**row, "chat_template_kwargs": CHAT_TEMPLATE_ARGUMENTS} for row in rows]),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def _arguments(*, epochs: float, learning_rate: float, batch_size: int, seed: int) -> dict[str, Any]:
    on_gpu = torch.cuda.is_available()
    return {
        "save_strategy": "no",
        "report_to": "none",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "seed": seed,
        "num_train_epochs": epochs,
        "learning_rate": learning_rate,
        "per_device_train_batch_size": batch_size,
        "use_cpu": not on_gpu,
        "bf16": on_gpu,
        "gradient_checkpointing": on_gpu,
        "dataloader_pin_memory": False,
    }


def or_uniform(weights: np.ndarray) -> np.ndarray:
    """Weights [N, A] with 1 / A in place of NaN."""
    return np.where(np.isnan(weights), 1 / weights.shape[1], weights)


def aspect_reward(aspect: Aspect, answer: str, label: str) -> float:
    """1 for an answer that is a label at all, 1 more for the right one, and up to 1 for a level near it.

    A workable form by one reproduction (I): 1[exact] + 1 - |level difference| / (levels - 1), and a check of the format.
    """
    labels = list(aspect.value_of)
    if answer not in labels:
        return 0.0
    apart = abs(labels.index(answer) - labels.index(label)) / (len(labels) - 1)
    return 1.0 + float(answer == label) + 1.0 - apart


def order_reward(rubric: Rubric, answer: str, preferred: Sequence[float], other: Sequence[float]) -> float:
    """1[s_hol of the preferred item is the higher one]; -1 for an answer that is not in the form."""
    weights = read_weights(rubric, answer)
    if weights is None:
        return -1.0
    # What differs in the last bit is equal, here and in `ordered_pairs`.
    return float(round(float(np.dot(weights, np.subtract(preferred, other))), 9) > 0)


def correct_points(engine: LanguageModelEngine, samples: Sequence[Labelled]) -> np.ndarray:
    """Bool [N, A]: whether the likeliest level is the true one; its mean is PointAcc."""
    results = engine.score([sample.request for sample in samples])
    correct = np.zeros((len(samples), len(engine.rubric.aspects)), dtype=bool)
    for row, (sample, result) in enumerate(zip(samples, results, strict=True)):
        if result.probabilities is None:
            continue
        rest = iter(result.probabilities)
        for column, (aspect, label) in enumerate(zip(engine.rubric.aspects, sample.labels, strict=True)):
            likely = {level.label: next(rest) for level in aspect.levels}
            correct[row, column] = max(likely, key=lambda name: likely[name]) == label
    return correct


def scored_pairs(engine: LanguageModelEngine, pairs: Sequence[Preference]) -> list[ScoredPair]:
    """The pairs whose both items the judge could score."""
    results = engine.score([request for pair in pairs for request in (pair.preferred, pair.other)])
    return [
        ScoredPair(
            state=pair.preferred,
            preferred=tuple(first.scores),
            other=tuple(second.scores),
            user_id=pair.user_id,
        )
        for pair, first, second in zip(pairs, results[::2], results[1::2], strict=True)
        if first.scores is not None and second.scores is not None
    ]


def ordered_pairs(pairs: Sequence[ScoredPair], weights: np.ndarray | None = None) -> np.ndarray:
    """[N]: 1 where the preferred item has the higher holistic score, one half where both are equal; the mean is PairAUC.

    ``weights`` [N, A]; default: uniform.
    """
    difference = np.array([np.subtract(pair.preferred, pair.other) for pair in pairs])
    lead = np.round(difference.mean(axis=1) if weights is None else (difference * weights).sum(axis=1), 9)
    return (lead > 0) + 0.5 * (lead == 0)


class Transformers:
    """A model in this process through transformers, as a backend of `LanguageModelEngine`: for measuring, not for nights."""

    BATCH = 32

    def __init__(self, model: Any, tokenizer: Any, max_model_len: int):
        self.model, self.tokenizer, self.max_model_len = model, tokenizer, max_model_len
        self.usage = Usage()
        self.gone: str | None = None

    def tokens(self, chat: Chat) -> list[int]:
        return chat_tokens(self.tokenizer, chat)

    def fits(self, chat: Chat, answer_tokens: int) -> bool:
        return fits_into(self.max_model_len, self, chat, answer_tokens)

    def label_log_probs(
        self, chats: Sequence[Chat], labels: Sequence[Sequence[str]]
    ) -> list[dict[str, float] | Failed]:
        answers: list[dict[str, float] | Failed] = [{}] * len(chats)
        token_of = {
            label: only_token(self.model.name_or_path, label, self.tokenizer.encode(label, add_special_tokens=False))
            for label in {label for of_chat in labels for label in of_chat}
        }
        for places, tokens, mask in self._batches(chats):
            with torch.inference_mode():
                output = self.model(input_ids=tokens, attention_mask=mask, logits_to_keep=1)
            log_probs = output.logits[:, -1].float().log_softmax(dim=-1)
            for row, place in enumerate(places):
                ids = [token_of[label] for label in labels[place]]
                answers[place] = dict(zip(labels[place], log_probs[row, ids].tolist(), strict=True))
        return answers

    def complete(self, chats: Sequence[Chat], schema: dict[str, Any] | None, max_tokens: int) -> list[str | Failed]:
        answers: list[str | Failed] = [""] * len(chats)
        for places, tokens, mask in self._batches(chats):
            with torch.inference_mode():
                output = self.model.generate(
                    input_ids=tokens,
                    attention_mask=mask,
                    max_new_tokens=max_tokens,
                    do_sample=False,
                    pad_token_id=self.tokenizer.pad_token_id,
                )
            texts = self.tokenizer.batch_decode(output[:, tokens.shape[1] :], skip_special_tokens=True)
            for place, text in zip(places, texts, strict=True):
                answers[place] = text.strip()
        return answers

    def _batches(self, chats: Sequence[Chat]) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
        """Places, tokens padded on the left, and their mask; prompts of one length side by side."""
        self.model.eval()
        prompts = [self.tokens(chat) for chat in chats]
        order = sorted(range(len(chats)), key=lambda place: len(prompts[place]))
        device = next(self.model.parameters()).device
        for start in range(0, len(order), self.BATCH):
            places = order[start : start + self.BATCH]
            longest = len(prompts[places[-1]])
            padded = [
                [self.tokenizer.pad_token_id] * (longest - len(prompts[place])) + prompts[place] for place in places
            ]
            mask = [[0] * (longest - len(prompts[place])) + [1] * len(prompts[place]) for place in places]
            yield places, torch.tensor(padded, device=device), torch.tensor(mask, device=device)


def _text(completion: Any) -> str:
    """A completion as TRL gives it: messages, or text."""
    return (completion if isinstance(completion, str) else completion[-1]["content"]).strip()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars, and without what the libraries warn each other of."""
    from datasets import disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    disable_progress_bars()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        enable_progress_bars()
        logging.enable_progress_bar()
