"""vLLM in this process."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sgrec_core.errors import SettingsError
from sgrec_core.judge.engines.backends import Chat, Failed, ModelTokenizer, fits_into, model_path, only_token
from sgrec_core.judge.request import Usage
from sgrec_core.settings import Settings

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for."""
STRUCTURED_OUTPUTS = {"backend": "xgrammar", "disable_any_whitespace": True}
"""An untrained model fills JSON with blanks until its tokens are used up."""


# How answers are decoded and read: `language_model.DECODING` makes these part of the judge's version.


def label_sampling(tokens: list[int]) -> Any:
    """Parameters for the log-probabilities of labels as the first token of an answer."""
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, max_tokens=1, logprob_token_ids=tokens, detokenize=False)


def text_sampling(schema: dict[str, Any] | None, max_tokens: int) -> Any:
    """Parameters for a greedy answer, bound to a JSON schema if there is one."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    structured = StructuredOutputsParams(json=schema) if schema else None
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, structured_outputs=structured)


def labels_of(output: Any, tokens: Mapping[str, int]) -> dict[str, float]:
    """Log-probabilities of labels, by their tokens, as the first token of one of vLLM's completions."""
    return {label: output.logprobs[0][token].logprob for label, token in tokens.items()}


class Vllm:
    """vLLM's offline engine. It starts with the first chat.

    Raises (by every method that asks the model):
        SettingsError: vLLM is missing, or cannot load the model, or its tokenizer has no single token for a label.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.usage = Usage()
        self.gone: str | None = None
        self._tokenizer = ModelTokenizer(settings)
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
            output if isinstance(output, Failed) else labels_of(output, {label: tokens[label] for label in of_chat})
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
