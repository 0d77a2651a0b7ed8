"""The judge without a language model: aspects from text embeddings. The default."""

from collections import defaultdict
from typing import Any

import numpy as np

from sgrec_core.errors import SettingsError
from sgrec_core.judge.engines.judging_code import judging_code
from sgrec_core.judge.prompt import describe
from sgrec_core.judge.request import NO_TEXT, JudgeRequest, JudgeResult, Usage
from sgrec_core.judge.rubric import Aspect, Rubric
from sgrec_core.settings import Settings

FORMULA = (f"{__name__}:EmbeddingEngine.score", "sgrec_core.items.encoder:TextEncoder.encode")
"""What makes scores of texts; the encoder's weights have a version of their own."""


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

    resolution = 1e-5
    """Of its scores: what float32 cosines of the same texts may differ by from run to run, and more."""

    def __init__(self, settings: Settings, rubric: Rubric):
        known = {"s0", "s1", "s2", "s3"}
        if unknown := [aspect.id for aspect in rubric.aspects if aspect.id not in known]:
            raise SettingsError(f"the embedding judge has no formula for aspects {unknown}; it knows {sorted(known)}")
        self.settings = settings
        self.rubric = rubric
        self.usage = Usage()
        self.gone: str | None = None
        self._loaded: Any = None

    def version_facts(self) -> dict[str, Any]:
        return {
            "engine": "embedding",
            "model": self._encoder().version,
            "code": judging_code(*FORMULA),
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
