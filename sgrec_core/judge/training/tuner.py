"""Training of a language-model judge: LoRA adapters by TRL (S-GRec, arXiv 2602.10606).

- Part A, aspects: supervised on labels, then GRPO with the aspect reward.
- Part B, weights: supervised on the form of the answer alone, then GRPO with the reward 1[s_hol(x,a) > s_hol(x,b)] on
  pairs of which a is preferred.

The prompts are those of `LanguageModelEngine` in mode ``labels``: a completion is one letter. Each stage gives an
adapter folder (safetensors and JSON) that vLLM loads beside the base model.
"""

import contextlib
import random
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sgrec_core.judge.engines.backends import CHAT_TEMPLATE_ARGUMENTS, Chat
from sgrec_core.judge.engines.language_model import LanguageModelEngine, fitting_chat
from sgrec_core.judge.engines.transformers_backend import Transformers
from sgrec_core.judge.prompt import IMPORTANCE, label_question, read_weights, weights_messages
from sgrec_core.judge.request import JudgeRequest
from sgrec_core.judge.rubric import Aspect, Rubric
from sgrec_core.judge.training.measures import or_uniform
from sgrec_core.judge.training.rewards import aspect_reward, order_reward
from sgrec_core.judge.training.samples import Labelled, ScoredPair
from sgrec_core.settings import JudgeSettings, JudgeTrainingSettings, Settings


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
        rows = (
            {"prompt": prompt, "completion": [{"role": "assistant", "content": label}]}
            for prompt, _, label in self._questions(samples)
        )
        fine_tune(self.model, self.tokenizer, rows, self.config)

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
        rows = (
            {
                "prompt": self._weights_chat(state),
                "completion": [
                    {"role": "assistant", "content": " ".join(draw.choices(IMPORTANCE, k=len(self.rubric.aspects)))}
                ],
            }
            for state in states
        )
        fine_tune(self.model, self.tokenizer, rows, self.config)

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
        # Made of defaults, not of the environment: the model is here, and only the mode counts.
        settings = Settings.model_construct(judge=JudgeSettings(engine="server", mode="labels"))
        engine = LanguageModelEngine(settings, self.rubric)
        engine.backend = self._backend()
        return engine

    def _backend(self) -> Transformers:
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
    config: JudgeTrainingSettings,
    *,
    completions_only: bool = True,
) -> None:
    """Supervised training of ``model`` on rows of chats, prompt and completion; ``completions_only`` are predicted."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    with _quiet(), tempfile.TemporaryDirectory() as scratch:
        arguments = SFTConfig(
            output_dir=scratch,
            **_arguments(
                epochs=config.sft_epochs,
                learning_rate=config.sft_learning_rate,
                batch_size=config.sft_batch_size,
                seed=config.seed,
            ),
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
