"""Registered versions for tests of what becomes of them."""

import hashlib

import torch

from sgrec_core.registry import GENERATOR, ModelVersion, Registry


def register(registry: Registry, day: str, name: str = GENERATOR, seed: int = 0) -> ModelVersion:
    """A version that is no model: what the registry keeps of one."""
    return registry.register(
        name,
        day=day,
        fingerprint=hashlib.sha256(f"{name}{day}{seed}".encode()).hexdigest()[:32],
        tensors={"weight": torch.arange(6.0).reshape(2, 3) + seed},
        config={"kind": "test", "seed": seed},
        metrics={"ndcg": 0.5},
        parameters={"width": 8},
        tables={"rewards": 3},
    )
