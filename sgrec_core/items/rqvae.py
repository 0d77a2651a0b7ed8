"""RQ-VAE: an autoencoder whose latent is a sum of codes, so that embedding space bends to what codes can say.

As in TIGER (arXiv 2305.05065, section 3.1) with LC-Rec's and MiniOneRec's start of the codebooks by k-means: squared
reconstruction error, straight-through gradients, codebook loss plus .25 commitment at every level. Unlike them, codes
that nothing chose in an epoch restart at residuals of the data, because a codebook that collapses stays collapsed.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import mse_loss

from sgrec_core.items.quantiser import Quantiser, unit
from sgrec_core.items.residual_kmeans import fit_levels, sample

_BATCH = 1024
_START = 8192
_COMMITMENT = 0.25


def fit_rqvae(
    embeddings: np.ndarray,
    levels: int,
    codebook_size: int,
    seed: int,
    *,
    hidden: int = 256,
    latent: int = 16,
    epochs: int = 200,
    learning_rate: float = 5e-3,
    device: torch.device | str = "cpu",
    progress: Callable[..., Iterable[Any]] | None = None,
) -> tuple[Quantiser, list[float]]:
    """A quantiser of ``embeddings`` [N, d], N >= 1, and the mean reconstruction loss of each epoch.

    Embeddings are read at unit length, centred and scaled to unit variance per dimension: with the tiny variance of
    unit vectors all codes collapse into one. The loss is the mean squared error on that scale, so that 1 is what the
    catalogue's mean would reach. ``progress`` wraps the loop over epochs: ``progress(iterable, total=...,
    description=...)``. Deterministic in rows, seed and machine. Catalogues above 50,000 items are fitted on a sample.
    Ten parameters, because the network's shape and training are set one by one where fits are compared.
    """
    random = torch.Generator().manual_seed(seed)
    vectors = unit(sample(embeddings, np.random.default_rng(seed)))
    mean = vectors.mean(axis=0)
    scale = float((vectors - mean).std()) or 1.0
    inputs = torch.from_numpy((vectors - mean) / scale).to(device)
    count, width = inputs.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        linear = nn.Linear(width, hidden), nn.Linear(hidden, latent)
        encoder = nn.Sequential(linear[0], nn.ReLU(), linear[1])
        decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, width))
    encoder.to(device)
    decoder.to(device)
    with torch.no_grad():
        first = encoder(inputs[torch.randperm(count, generator=random)[:_START].to(device)]).cpu().numpy()
    start = fit_levels(first, levels, codebook_size, np.random.default_rng(seed), residuals="plain")
    codebooks = nn.Parameter(torch.from_numpy(start.codebooks).to(device))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters(), codebooks], lr=learning_rate)

    def epoch() -> float:
        total = torch.zeros((), device=device)
        used = torch.zeros(levels, codebook_size, device=device)
        for rows in torch.randperm(count, generator=random).split(_BATCH):
            batch = inputs[rows.to(device)]
            latents = encoder(batch)
            residuals, quantised = latents, torch.zeros_like(latents)
            loss = torch.zeros((), device=device)
            remaining = []
            for level, codebook in enumerate(codebooks):
                remaining.append(residuals.detach())
                # Products with one-hot rows, not look-ups: their gradients are the same at each run on a GPU too.
                chosen = nn.functional.one_hot(
                    torch.cdist(residuals.detach(), codebook.detach()).argmin(dim=1), codebook_size
                ).to(latents.dtype)
                centroids = chosen @ codebook
                loss = loss + mse_loss(centroids, residuals.detach())
                loss = loss + _COMMITMENT * mse_loss(residuals, centroids.detach())
                quantised = quantised + centroids.detach()
                residuals = residuals - centroids.detach()
                used[level] += chosen.sum(dim=0)
            reconstruction = mse_loss(decoder(latents + (quantised - latents).detach()), batch)
            optimizer.zero_grad()
            (reconstruction + loss).backward()
            optimizer.step()
            total += reconstruction.detach() * len(rows)
        with torch.no_grad():
            for level, codebook in enumerate(codebooks):
                dead = (used[level] == 0).nonzero()[:, 0]
                picks = torch.randint(len(remaining[level]), (len(dead),), generator=random)
                codebook[dead] = remaining[level][picks.to(device)]
        return float(total) / count

    steps: Iterable[int] = range(epochs)
    if progress is not None:
        steps = progress(steps, total=epochs, description="fitting RQ-VAE")
    losses = [epoch() for _ in steps]

    layers = [(layer.weight.detach().cpu().numpy().T, layer.bias.detach().cpu().numpy()) for layer in linear]
    weights, biases = layers[0]
    # The quantiser gets unit vectors: centring and scaling go into the first layer.
    layers[0] = (weights / scale, biases - (mean / scale) @ weights)
    return Quantiser(codebooks=codebooks.detach().cpu().numpy(), residuals="plain", encoder=tuple(layers)), losses
