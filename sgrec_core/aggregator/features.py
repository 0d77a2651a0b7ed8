"""What the small network reads of a state; never the target."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

PROJECTED = 24
"""Dimensions that a history's mean embedding is reduced to."""
HASHED = 32
"""Buckets of the profile's and context's fields."""
_HALF_LIFE = 3.0
_SCALARS = 7


def state_features(
    states: pa.Table, item_ids: Sequence[str], item_vectors: np.ndarray | None, *, seed: int
) -> np.ndarray:
    """Features float32 [N, 2 * 24 + 7 + 32] of N rows of ``user_states`` (columns history, profile, context).

    ``item_vectors`` [I, d] are unit vectors of ``item_ids``; None where items have no text. In order: the mean of the
    history's vectors and its recency-weighted mean (half-life three items), each through one random projection fixed
    by ``seed``; length, repetition, diversity and drift of the history and how fully profile and context are known;
    and the fields of profile and context hashed into buckets. Items that left the catalogue count for length only.
    """
    features = np.zeros((states.num_rows, 2 * PROJECTED + _SCALARS + HASHED), dtype=np.float32)
    row_of = {item: row for row, item in enumerate(item_ids)} if item_vectors is not None else {}
    dimensions = 0 if item_vectors is None else item_vectors.shape[1]
    projection = np.random.default_rng(seed).normal(size=(dimensions, PROJECTED)) / np.sqrt(PROJECTED)
    hashed: dict[str | None, tuple[np.ndarray, int]] = {}
    columns = (states[name].to_pylist() for name in ("history", "profile", "context"))
    for row, (history, profile, context) in enumerate(zip(*columns, strict=True)):
        rows = [row_of[item] for item in history if item in row_of]
        scalars = features[row, 2 * PROJECTED : 2 * PROJECTED + _SCALARS]
        scalars[0] = np.log1p(len(history))
        scalars[1] = 1 - len(set(history)) / len(history) if history else 0
        scalars[2] = float(bool(history) and history[-1] in history[:-1])
        if rows and item_vectors is not None:
            vectors = item_vectors[rows].astype(np.float64)
            mean = vectors.mean(axis=0)
            recency = 0.5 ** (np.arange(len(rows) - 1, -1, -1) / _HALF_LIFE)
            recent = recency @ vectors / recency.sum()
            features[row, :PROJECTED] = mean @ projection
            features[row, PROJECTED : 2 * PROJECTED] = recent @ projection
            scalars[3] = 1 - mean @ mean
            scalars[4] = vectors[-1] @ mean
        for text in (profile, context):
            if text not in hashed:
                hashed[text] = _hashed_fields(text)
        buckets = features[row, 2 * PROJECTED + _SCALARS :]
        for offset, (text, known) in enumerate(((profile, 5), (context, 6))):
            values, fields = hashed[text]
            # Profile and context take turns in the buckets, so that equal field names do not meet.
            buckets += np.roll(values, offset)
            scalars[known] = np.log1p(fields)
    return features


def _hashed_fields(text: str | None) -> tuple[np.ndarray, int]:
    """Signed hashes of the scalar fields of a JSON object [32], and their number; numbers by order of magnitude."""
    values = np.zeros(HASHED, dtype=np.float32)
    try:
        fields = json.loads(text) if text else {}
    except json.JSONDecodeError:
        fields = {}
    if not isinstance(fields, dict):
        return values, 0
    for key, value in sorted(fields.items()):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = f"2^{round(float(np.sign(value) * np.log2(1 + abs(value))), 1)}"
        digest = hashlib.blake2b(f"{key}={value}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        values[digest[0] % HASHED] += 1.0 if digest[1] % 2 else -1.0
    return values, len(fields)
