"""Sampling by content: the same key and seed give the same share on every machine, in every language runtime.

Every choice of "which users", "which groups" or "which pairs" goes through here, so that a re-run chooses the same.
"""

import hashlib
from collections.abc import Iterable

import numpy as np


def digest(*parts: object, length: int = 16) -> str:
    """Hex digest of the parts' texts; ``length`` hex characters (at most 128)."""
    hasher = hashlib.blake2b()
    for part in parts:
        text = str(part).encode("utf-8", "surrogatepass")
        hasher.update(len(text).to_bytes(8, "little"))
        hasher.update(text)
    return hasher.hexdigest()[:length]


def hash_share(keys: Iterable[str], seed: int | str) -> np.ndarray:
    """A number in [0, 1) for each key, uniform over keys and fixed by ``seed``; float64 of shape [N]."""
    # 53 bits are what a float64 holds exactly, so no share can round up to 1.
    return (_hashes(keys, seed) >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def hash_integers(keys: Iterable[str]) -> np.ndarray:
    """A 64-bit integer for each key, to look keys up by; int64 of shape [N]."""
    return _hashes(keys, "lookup").view(np.int64)


def _hashes(keys: Iterable[str], seed: int | str) -> np.ndarray:
    """uint64 of shape [N]."""
    prefix = f"{seed}\x00".encode()
    hashes = [
        int.from_bytes(hashlib.blake2b(prefix + key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
        for key in keys
    ]
    return np.array(hashes, dtype=np.uint64)


def is_validation_user(user_ids: Iterable[str], share: float) -> np.ndarray:
    """Which users of a log source are held out; bool of shape [N].

    The hash has no per-night part: the same users are held out every night, so no fit ever reads them.
    """
    return hash_share(user_ids, "validation-users") < share


def share_not_among(user_ids: Iterable[str]) -> float:
    """The largest share for which `is_validation_user` holds out none of these users; 1 without users."""
    return float(hash_share(user_ids, "validation-users").min(initial=1.0))
