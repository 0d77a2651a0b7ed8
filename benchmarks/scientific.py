"""Amazon Scientific as a world for comparing objectives.

Per user: all but the last three items are for supervised training, then one item of feedback, one for validation, one
for test. Item codes are those that a night makes: residual k-means over text embeddings, 3 x 256, collision-free.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import data
from benchmarks.world import Decisions, World
from sgrec_core.aggregator.features import state_features
from sgrec_core.aggregator.network import Pairs, fit
from sgrec_core.generator.packing import cut_windows
from sgrec_core.judge.engines.embedding import EmbeddingEngine
from sgrec_core.judge.rubric import load_rubric
from sgrec_core.rewards.ranking import ranking_reward
from sgrec_core.settings import AggregatorSettings, Settings


def world(folder: Path, *, short: bool, cache: Path) -> World:
    """Scientific from the folder of public sets; ``short`` keeps an eighth of the users."""
    source = data.load("scientific", folder)
    sequences = source.sequences[::8] if short else source.sequences
    embeddings = data.text_embeddings(source, cache)
    trie = data.with_text_codes(source, embeddings).trie
    names = [f"{number:06d}" for number in range(len(embeddings))]
    training = [sequence[:-3] for sequence in sequences]
    feedback = _decisions(sequences, -3)
    return World(
        name="scientific",
        trie=trie,
        windows=cut_windows(training, [1] * len(training), data.MAX_HISTORY),
        feedback=feedback,
        business=lambda rows, items: ranking_reward(items, feedback.targets[rows]),
        semantic={
            "embedding": _embedding_judge(embeddings, names, training, feedback),
            "text_model": _text_model(embeddings, training, feedback),
        },
        validation=_decisions(sequences, -2),
        test=_decisions(sequences, -1),
    )


def _decisions(sequences: list[np.ndarray], cut: int) -> Decisions:
    histories = np.full((len(sequences), data.MAX_HISTORY), -1, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        history = sequence[:cut][-data.MAX_HISTORY :]
        histories[row, : len(history)] = history
    return Decisions(histories, np.array([sequence[cut] for sequence in sequences]), np.arange(len(sequences)))


Judge = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _embedding_judge(
    embeddings: np.ndarray, names: list[str], training: list[np.ndarray], feedback: Decisions
) -> Judge:
    """The night's embedded judge and aggregator: aspects s0 to s2, weighed by a network trained on preference pairs.

    A pair sets the last training item of a user against one drawn uniformly from the items that the user never had.
    """
    rubric = load_rubric(False)
    engine = EmbeddingEngine(Settings(), rubric)
    draw = np.random.default_rng(0)
    before, preferred, other = [], [], []
    for sequence in training:
        if len(sequence) > 1:
            drawn = int(draw.integers(len(names)))
            while drawn in sequence:
                drawn = int(draw.integers(len(names)))
            before.append(sequence[:-1][-data.MAX_HISTORY :])
            preferred.append(sequence[-1])
            other.append(drawn)

    def aspect_scores(history: np.ndarray, items: np.ndarray) -> np.ndarray:
        return engine.score_vectors(embeddings[items], embeddings[history])

    pairs = np.array([aspect_scores(*row) for row in zip(before, np.stack([preferred, other], axis=1), strict=True)])
    module, _ = fit(
        Pairs(
            users=[str(number) for number in range(len(before))],
            features=_features(before, names, embeddings),
            preferred=pairs[:, 0],
            other=pairs[:, 1],
        ),
        rubric.aspect_ids,
        AggregatorSettings(seed=0),
    )
    histories = [history[history >= 0] for history in feedback.histories]
    user_weights = module.weights(_features(histories, names, embeddings))

    def judge(rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        scores = [
            aspect_scores(histories[row], group) @ user_weights[row] for row, group in zip(rows, items, strict=True)
        ]
        return np.array(scores, dtype=np.float64).reshape(items.shape)

    return judge


def _features(histories: list[np.ndarray], names: list[str], embeddings: np.ndarray) -> np.ndarray:
    lists = [[names[item] for item in history] for history in histories]
    nothing = pa.nulls(len(lists), pa.string())
    states = pa.table({"history": pa.array(lists, pa.list_(pa.string())), "profile": nothing, "context": nothing})
    return state_features(states, names, embeddings, seed=0)


def _text_model(embeddings: np.ndarray, training: list[np.ndarray], feedback: Decisions) -> Judge:
    """A better informed judge: the cosine between what a small network expects next and the candidate's text.

    Two towers over text embeddings, trained on the supervised part with a softmax over the whole catalogue. No part of
    the product; it tells what A2PO makes of a judge whose order of the candidates is better than the policy's own.
    """
    text = torch.from_numpy(embeddings)
    examples = [
        (sequence[max(0, at - data.MAX_HISTORY) : at], sequence[at])
        for sequence in training
        for at in range(1, len(sequence))
    ]
    inputs = _summaries([history for history, _ in examples], embeddings)
    targets = torch.tensor([int(target) for _, target in examples])
    width = text.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        user = nn.Sequential(
            nn.Dropout(0.3), nn.Linear(3 * width, 256), nn.GELU(), nn.Dropout(0.3), nn.Linear(256, 128)
        )
        item = nn.Sequential(nn.Dropout(0.2), nn.Linear(width, 128))
        optimiser = torch.optim.AdamW([*user.parameters(), *item.parameters()], lr=1e-3, weight_decay=0.05)
        for _ in range(12):
            for batch in torch.randperm(len(targets)).split(256):
                logits = F.normalize(user(inputs[batch])) @ F.normalize(item(text)).T / 0.07
                loss = F.cross_entropy(logits, targets[batch])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        user.eval(), item.eval()
        with torch.inference_mode():
            summaries = _summaries([history[history >= 0] for history in feedback.histories], embeddings)
            users, items = F.normalize(user(summaries)), F.normalize(item(text))

    def judge(rows: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        chosen = items[torch.from_numpy(candidates)]
        return torch.einsum("bd,bgd->bg", users[torch.from_numpy(rows)], chosen).double().numpy()

    return judge


def _summaries(histories: list[np.ndarray], embeddings: np.ndarray) -> Tensor:
    """[N, 3 x 384] mean, recency-weighted mean (half-life three items) and last vector of each history."""
    rows = np.zeros((len(histories), 3, embeddings.shape[1]), dtype=np.float32)
    for row, history in enumerate(histories):
        vectors = embeddings[history]
        recency = 0.5 ** (np.arange(len(history) - 1, -1, -1) / 3)
        rows[row] = vectors.mean(axis=0), recency @ vectors / recency.sum(), vectors[-1]
    return torch.from_numpy(rows).flatten(1)
