"""The kinds of quantiser by the names that the setting ``items.quantiser`` has for them."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from sgrec_core.errors import SettingsError
from sgrec_core.items.quantiser import Quantiser
from sgrec_core.items.residual_kmeans import fit_residual_kmeans
from sgrec_core.items.rqvae import fit_rqvae
from sgrec_core.settings import QuantiserName

_ITEMS_PER_CODE = 8
_ROOM = 64


def fit_quantiser(
    name: QuantiserName,
    embeddings: np.ndarray,
    levels: int,
    codebook_size: int,
    seed: int,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[..., Iterable[Any]] | None = None,
) -> Quantiser:
    """A quantiser of ``embeddings`` [N, d], N >= 1, with a codebook size from `shrunk_codebook_size`.

    ``kmeans`` has plain residuals, ``normalised_kmeans`` normalised ones, ``balanced_kmeans`` these and a balanced last
    level. ``rqvae`` learns on ``device``. Deterministic in the rows, their order, the seed and the machine.
    ``progress`` wraps long loops, as in `TextEncoder.encode`. Raises SettingsError when the settings leave no free
    tuple for each item.
    """
    size = shrunk_codebook_size(len(embeddings), levels, codebook_size)
    if name == "kmeans":
        return fit_residual_kmeans(embeddings, levels, size, seed, residuals="plain")
    if name == "normalised_kmeans":
        return fit_residual_kmeans(embeddings, levels, size, seed)
    if name == "balanced_kmeans":
        return fit_residual_kmeans(embeddings, levels, size, seed, balanced_last_level=True)
    return fit_rqvae(embeddings, levels, size, seed, device=device, progress=progress)[0]


def shrunk_codebook_size(items: int, levels: int, codebook_size: int) -> int:
    """The codebook size for a catalogue of ``items``: at most ``codebook_size``, smaller for a small catalogue.

    A level should group items (about eight a code on the first), or codes are item numbers and nothing is
    shared between items; and there must be room for items of later nights (64 tuples for each item of today).
    Raises SettingsError when even ``codebook_size`` leaves no free tuple for each item.
    """
    if codebook_size**levels < items:
        raise SettingsError(
            f"items.levels={levels} and items.codebook_size={codebook_size} make {codebook_size**levels} semantic "
            f"ids for {items} items: raise one of them"
        )
    room = math.ceil((_ROOM * max(items, 1)) ** (1 / levels))
    return max(2, min(codebook_size, max(room, items // _ITEMS_PER_CODE)))
