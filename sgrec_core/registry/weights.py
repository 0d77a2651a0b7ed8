"""A registered model as files: the one place where the registry reads and writes safetensors.

A NaN in a weight is met far away, as an empty list or an index out of range. So it is told here, on both ways.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sgrec_core.errors import SgrecError

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def write_model(folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
    """Write tensors, which `check_finite` has passed, and ``config``, which is JSON."""
    # Sorted and contiguous, so that the same weights make the same file.
    save_file({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def read_model(folder: Path, *, of: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and config of the model ``of``.

    Raises:
        SgrecError: a file is lost or damaged, or a tensor is not finite.
    """
    try:
        tensors, config = load_file(folder / WEIGHTS), json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError, SafetensorError) as error:
        raise SgrecError(f"{of}: it cannot be read from {folder}: {error}") from error
    check_finite(tensors, of=of)
    return tensors, config


def check_finite(tensors: Mapping[str, torch.Tensor], *, of: str) -> None:
    """Raise where a number among the weights is none, or has no bound.

    Raises:
        SgrecError: the message names model, tensor and how many of its numbers.
    """
    for name, tensor in tensors.items():
        # Whole numbers are finite.
        if tensor.is_floating_point() and not (finite := torch.isfinite(tensor)).all():
            count = int((~finite).sum())
            raise SgrecError(
                f"{of}: {count:,} of {tensor.numel():,} numbers of tensor {name!r} are NaN or infinite; valid are"
                " finite ones"
            )
