"""Checkpoints of a training: tensors in safetensors and state in JSON, published whole or not at all.

A checkpoint is written into a scratch folder, flushed to disk, and renamed: what bears its name is complete, whenever
the process is killed. The newest one alone is kept.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgrec_core.errors import InputError
from sgrec_core.files import read_json

TENSORS, STATE = "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoints:
    """Where a training keeps its checkpoints, and how often it makes one."""

    folder: Path
    every: int
    """Steps from one checkpoint to the next."""

    def publish(
        self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], identity: Mapping[str, Any]
    ) -> None:
        """Write the checkpoint before step ``step``, and remove all others.

        ``state`` and ``identity`` are JSON; the latter says which training it belongs to.
        """
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        target, scratch = self.folder / f"step-{step:09d}", self.folder / f"scratch-{os.getpid()}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, scratch / TENSORS)
        (scratch / STATE).write_text(json.dumps({"identity": identity, "step": step, **state}, indent=1) + "\n")
        for path in (scratch / TENSORS, scratch / STATE, scratch):
            _flush(path)
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
        _flush(self.folder)
        for other in (*self.folder.glob("step-*"), *self.folder.glob("scratch-*")):
            if other != target:
                shutil.rmtree(other)

    def newest(
        self, identity: Mapping[str, Any], device: torch.device
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and state of the newest checkpoint, or None while there is none, and where its state is damaged.

        Raises:
            InputError: it belongs to another training; the message says what differs.
        """
        found = sorted(self.folder.glob("step-*"))
        if not found:
            return None
        from safetensors.torch import load_file

        state = read_json(found[-1] / STATE, otherwise="the training begins anew")
        if not state:
            return None
        theirs, ours = _flat(state["identity"]), _flat(json.loads(json.dumps(identity)))
        differences = [
            f"{name} {theirs.get(name, 'missing')} there, {ours.get(name, 'missing')} here"
            for name in sorted({*theirs, *ours})
            if theirs.get(name) != ours.get(name)
        ]
        if differences:
            raise InputError(
                f"{found[-1]} is a checkpoint of another training: {'; '.join(differences)}."
                " Train with what it was made with, or name an empty folder"
            )
        return load_file(found[-1] / TENSORS, device=str(device)), state


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested names joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat
