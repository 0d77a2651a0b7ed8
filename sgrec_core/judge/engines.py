"""The two judges behind one interface: text embeddings (the default), and an LLM in vLLM's offline engine.

An engine is an object with ``version_facts() -> dict``, cheap and without loading anything, which goes into
``judge_version``; and ``score(requests) -> results``, one result for each request in order. What one request does
wrong becomes its result's ``failure``; an engine that cannot run at all raises.
"""

import hashlib
import json
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sgrec_core.errors import SettingsError
from sgrec_core.judge.prompt import answer_schema, clean, describe, read_answer, system_message, user_message
from sgrec_core.judge.rubric import Aspect, Rubric
from sgrec_core.judge.tiny_model import make_tiny_model, tiny_model_fingerprint
from sgrec_core.settings import Settings

NO_TEXT = "the item has no text"
"""The failure of a request that no engine is asked about: the same item content fails again."""


@dataclass(frozen=True, kw_only=True)
class JudgeRequest:
    """One (user state, item) pair to judge. Texts arrive raw; engines clean and bound them."""

    state_id: str
    item_id: str
    item_hash: str
    history_texts: tuple[str, ...]
    """Oldest first."""
    profile: str | None
    """Canonical JSON."""
    context: str | None
    """Canonical JSON."""
    item_text: str


@dataclass(frozen=True, kw_only=True)
class JudgeResult:
    """Scores in the order of the rubric's aspects, or the reason why there are none."""

    scores: list[float] | None = None
    evidence: str | None = None
    failure: str | None = None


class EmbeddingEngine:
    """Aspects from sentence embeddings. It is no LLM: it knows which texts are alike, not what they mean to a user.

    With unit-norm embeddings e, cosine similarities cut to [0, 1] and stretched over the aspect's scale:

    - s0: profile text against the item; without a profile, the mean of the whole history;
    - s1: mean of the history, each step back weighing half as much every `HALF_LIFE` entries, against the item;
    - s2: 1 - the largest similarity of any history entry to the item;
    - s3: context text against the item.

    Where the text that an aspect needs is absent (no history, no profile, no context) the score is the middle of the
    scale; novelty without a history is the top of it. The mapping is ours; the paper has an LLM here.
    """

    HALF_LIFE = 3.0
    FORMULA = "cosines-1"
    """Change it with the formula: it is what tells ``judge_version`` that scores mean something else."""

    def __init__(self, settings: Settings, rubric: Rubric):
        known = {"s0", "s1", "s2", "s3"}
        if unknown := [aspect.id for aspect in rubric.aspects if aspect.id not in known]:
            raise SettingsError(f"the embedding judge has no formula for aspects {unknown}; it knows {sorted(known)}")
        self.settings = settings
        self.rubric = rubric
        self._loaded: Any = None

    def version_facts(self) -> dict[str, Any]:
        return {
            "engine": "embedding",
            "model": self._encoder().version,
            "formula": [self.FORMULA, self.HALF_LIFE],
            "rubric": self.rubric.fingerprint,
        }

    def score(self, requests: list[JudgeRequest]) -> list[JudgeResult]:
        """Vectorised over the items of each state; a request without item text fails."""
        results = [JudgeResult(failure=NO_TEXT)] * len(requests)
        positions_of_state: dict[str, list[int]] = defaultdict(list)
        for position, request in enumerate(requests):
            if request.item_text.strip():
                positions_of_state[request.state_id].append(position)

        rows_of_state = {}
        row_of_text: dict[str, int] = {}

        def row(text: str | None) -> int | None:
            text = (text or "").strip()
            return row_of_text.setdefault(text, len(row_of_text)) if text else None

        for state_id, positions in positions_of_state.items():
            state = requests[positions[0]]
            rows_of_state[state_id] = (
                [row(requests[position].item_text) for position in positions],
                [number for text in state.history_texts if (number := row(text)) is not None],
                row(describe(state.profile, self.rubric.limits.profile)),
                row(describe(state.context, self.rubric.limits.context)),
            )
        embeddings = self._encoder().encode(list(row_of_text))

        for state_id, (items, history, profile, context) in rows_of_state.items():
            scores = self.score_vectors(
                embeddings[items],
                embeddings[history],
                None if profile is None else embeddings[profile],
                None if context is None else embeddings[context],
            )
            for position, values in zip(positions_of_state[state_id], scores.tolist(), strict=True):
                results[position] = JudgeResult(scores=values)
        return results

    def score_vectors(
        self,
        items: np.ndarray,
        history: np.ndarray,
        profile: np.ndarray | None = None,
        context: np.ndarray | None = None,
    ) -> np.ndarray:
        """Scores [N, aspects] from unit vectors: items [N, 384], history [H, 384] oldest first, the others [384]."""
        if profile is None and len(history):
            profile = history.mean(axis=0)
        recent = None
        if len(history):
            age = np.arange(len(history) - 1, -1, -1, dtype=np.float32)
            recent = (0.5 ** (age / self.HALF_LIFE)) @ history
        columns = []
        for aspect in self.rubric.aspects:
            if aspect.id == "s2":
                nearest = (items @ history.T).max(axis=1) if len(history) else np.zeros(len(items), dtype=np.float32)
                columns.append(_onto_scale(1.0 - np.clip(nearest, 0.0, 1.0), aspect))
            else:
                against = {"s0": profile, "s1": recent, "s3": context}[aspect.id]
                columns.append(_onto_scale(_cosine(items, against), aspect))
        return np.stack(columns, axis=1)

    def _encoder(self) -> Any:
        if self._loaded is None:
            # Imported here: the vllm judge needs none of it.
            from sgrec_core.items import embeddings_cache
            from sgrec_core.items.encoder import TextEncoder

            self._loaded = TextEncoder(embeddings_cache(self.settings), threads=self.settings.threads)
        return self._loaded


def _cosine(items: np.ndarray, vector: np.ndarray | None) -> np.ndarray:
    """Similarity [N] of unit rows to a vector of any length, cut to [0, 1]; one half where there is no vector."""
    norm = 0.0 if vector is None else float(np.linalg.norm(vector))
    if vector is None or norm < 1e-6:
        return np.full(len(items), 0.5, dtype=np.float32)
    return np.clip(items @ (vector / norm), 0.0, 1.0)


def _onto_scale(share: np.ndarray, aspect: Aspect) -> np.ndarray:
    """Shares in [0, 1] stretched over the aspect's scale."""
    return (aspect.lowest + (aspect.highest - aspect.lowest) * share).astype(np.float32)


class VllmEngine:
    """An LLM in this process, through vLLM's offline engine, with answers bound to the rubric's JSON schema.

    Greedy decoding: the score of an aspect is the value of the level that the model names. The engine starts at the
    first `score`.
    """

    CHAT_TEMPLATE_ARGUMENTS = {"enable_thinking": False}
    """Read by the templates of hybrid reasoning models, ignored by others: the answer starts at once."""

    def __init__(self, settings: Settings, rubric: Rubric):
        self.settings = settings
        self.rubric = rubric
        # A token is at least one character, and a grammar may put a blank after each: twice the length always
        # suffices.
        self.max_tokens = 2 * len(json.dumps({aspect.id: aspect.levels[0].label for aspect in rubric.aspects}))
        self._llm: Any = None

    def version_facts(self) -> dict[str, Any]:
        return {
            "engine": "vllm",
            "model": _model_identity(self.settings.judge.model, self.settings.judge.revision),
            "decoding": {
                "temperature": 0,
                "structured": "json",
                "max_tokens": self.max_tokens,
                "chat_template_arguments": self.CHAT_TEMPLATE_ARGUMENTS,
            },
            "rubric": self.rubric.fingerprint,
        }

    def score(self, requests: list[JudgeRequest]) -> list[JudgeResult]:
        """Requests with the same state should stand side by side, so that their prompts' common part is computed once.

        Raises:
            SettingsError: vLLM is missing, or cannot load the model.
        """
        if not requests:
            return []
        llm = self._start()
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=self.max_tokens,
            structured_outputs=StructuredOutputsParams(json=answer_schema(self.rubric)),
        )
        results = [JudgeResult(failure=NO_TEXT)] * len(requests)
        prompts, positions = [], []
        longest = llm.model_config.max_model_len - self.max_tokens
        for position, request in enumerate(requests):
            if not clean(request.item_text, self.rubric.limits.item):
                continue
            tokens = self._tokens(request)
            if len(tokens) > longest:
                failure = f"prompt of {len(tokens)} tokens; at most {longest} fit (judge.max_model_len)"
                results[position] = JudgeResult(failure=failure)
                continue
            prompts.append({"prompt_token_ids": tokens})
            positions.append(position)

        # A warm prefix cache can change an answer by rounding; starting each call cold, a call's answers do not
        # depend on the calls before it, and a killed night that continues gives what an undisturbed one gives.
        llm.reset_prefix_cache()
        outputs = llm.generate(prompts, sampling, use_tqdm=False) if prompts else []
        for position, output in zip(positions, outputs, strict=True):
            completion = output.outputs[0]
            try:
                results[position] = JudgeResult(scores=read_answer(self.rubric, completion.text))
            except ValueError as error:
                failure = f"malformed answer ({completion.finish_reason}): {error}"
                results[position] = JudgeResult(failure=clean(failure, 500))
        return results

    def _tokens(self, request: JudgeRequest) -> list[int]:
        user = user_message(
            self.rubric,
            profile=request.profile,
            context=request.context,
            history_texts=list(request.history_texts),
            item_text=request.item_text,
        )
        messages = [{"role": "system", "content": system_message(self.rubric)}, {"role": "user", "content": user}]
        return self._llm.get_tokenizer().apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=False, **self.CHAT_TEMPLATE_ARGUMENTS
        )

    def _start(self) -> Any:
        if self._llm is not None:
            return self._llm
        judge = self.settings.judge
        cache = self.settings.home.resolve() / "models"
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
        model = judge.model
        if model == "tiny":
            model = str(make_tiny_model(cache / "tiny-judge"))
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
                enable_prefix_caching=True,
                # On a CPU: a fixed cache, and no compiling, which costs more than it gives for models that one would
                # run there.
                enforce_eager=on_cpu,
                kv_cache_memory_bytes=int(judge.kv_cache_gib * 2**30) if on_cpu else None,
                # An untrained model fills JSON with blanks until its tokens are used up.
                structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
                disable_log_stats=True,
            )
        except Exception as error:
            lines = str(error).splitlines() or [type(error).__name__]
            raise SettingsError(f"vLLM cannot load judge.model={judge.model!r}: {lines[0]}") from error
        return self._llm


def _model_identity(model: str, revision: str | None) -> dict[str, str]:
    """What tells one model's scores from another's.

    Raises:
        SettingsError: the model is neither 'tiny', nor a folder, nor a name with a pinned revision.
    """
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


def _hash_model_files(folder: Path) -> str:
    """Digest of configuration, tokenizer, chat template and weights."""
    hasher = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.iterdir()):
        if path.suffix in {".json", ".jinja", ".model", ".safetensors", ".bin", ".txt"} and path.is_file():
            hasher.update(path.name.encode() + b"\x00" + str(path.stat().st_size).encode() + b"\x00")
            with path.open("rb") as file:
                while block := file.read(1 << 24):
                    hasher.update(block)
    return hasher.hexdigest()
