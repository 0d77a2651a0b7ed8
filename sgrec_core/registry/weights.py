"""The weights of a registered model as a file: the one place where the registry reads and writes safetensors.

A NaN in a weight is met far away, as an empty list or an index out of range. So it is told here, on both ways.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sgrec_core.errors import SgrecError

FILE = "model.safetensors"


def write_weights(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write the tensors, which `check_finite` has passed."""
    # Sorted and contiguous, so that the same weights make the same file.
    save_file({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}, folder / FILE)


def read_weights(folder: Path, *, of: str) -> dict[str, torch.Tensor]:
    """The tensors of the model ``of``.

    Raises:
        SgrecError: the file is lost or damaged, or a tensor is not finite.
    """
    try:
        tensors = load_file(folder / FILE)
    except (OSError, SafetensorError) as error:
        raise SgrecError(f"{of}: its weights cannot be read from {folder / FILE}: {error}") from error
    check_finite(tensors, of=of)
    return tensors


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
