"""Quantisers: what every kind promises, and what sets each kind apart."""

import json
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from sgrec_core.errors import SettingsError
from sgrec_core.items.codes import assign_codes
from sgrec_core.items.diagnostics import diagnostics, prefix_alignment
from sgrec_core.items.fitting import fit_quantiser, shrunk_codebook_size
from sgrec_core.items.quantiser import Quantiser, next_residuals, unit
from sgrec_core.items.residual_kmeans import fit_residual_kmeans
from sgrec_core.items.rqvae import fit_rqvae
from sgrec_core.settings import QuantiserName

KINDS = get_args(QuantiserName)


def clusters(
    count: int, groups: int, seed: int, dimensions: int = 24, spread: float = 0.15
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors in ``groups`` clusters far apart, and the cluster of each."""
    generator = np.random.default_rng(seed)
    centres = np.linalg.qr(generator.normal(size=(dimensions, groups)))[0].T
    of = np.arange(count) % groups
    return (centres[of] + spread * generator.normal(size=(count, dimensions)) / dimensions**0.5).astype(np.float32), of


def fit(kind: QuantiserName, embeddings: np.ndarray, levels: int, size: int, seed: int = 0) -> Quantiser:
    if kind == "rqvae":
        return fit_rqvae(embeddings, levels, size, seed, hidden=32, latent=8, epochs=30)[0]
    return fit_quantiser(kind, embeddings, levels, size, seed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantiser_is_deterministic_and_the_same_after_saving(kind):
    embeddings, _ = clusters(300, 6, 1)
    quantiser = fit(kind, embeddings, 3, 16)
    codes = quantiser.encode(embeddings)
    assert codes.shape == (300, 3)
    assert (quantiser.levels, quantiser.codebook_size) == (3, 16)
    assert 0 <= codes.min() <= codes.max() < 16
    again = fit(kind, embeddings, 3, 16)
    assert all(
        bool((a == b).all()) for a, b in zip(quantiser.tensors().values(), again.tensors().values(), strict=True)
    )
    loaded = Quantiser.load(load(save(quantiser.tensors())), json.loads(json.dumps(quantiser.config())))
    assert np.array_equal(loaded.encode(embeddings), codes)
    assert np.array_equal(loaded.encode(7 * embeddings), codes), "length carries nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_costs_agree_with_the_codes_at_every_level(kind):
    embeddings, _ = clusters(120, 6, 2)
    quantiser = fit(kind, embeddings, 3, 8)
    codes = quantiser.encode(embeddings)
    for level in range(3):
        costs = quantiser.costs(embeddings, codes[:, :level])
        cheapest = costs[np.arange(120), codes[:, level]]
        assert np.allclose(cheapest, costs.min(axis=1), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 50))
def test_cold_start_new_items_near_an_old_cluster_get_its_first_code(kind, seed):
    """Nights append: old items keep their codes, and a new item's first code is the one of its like."""
    embeddings, of = clusters(260, 5, seed)
    old = np.arange(260) < 200
    quantiser = fit(kind, embeddings[old], 3, 16, seed)
    items = [f"i{number}" for number in range(260)]
    known = assign_codes(items[:200], embeddings[old], quantiser, {})
    new = assign_codes(items, embeddings, quantiser, known)
    assert set(new) == set(items[200:])
    assert not set(new.values()) & set(known.values())
    first_codes = {
        cluster: {known[items[row]][0] for row in np.flatnonzero(old & (of == cluster))} for cluster in range(5)
    }
    hits = [new[items[row]][0] in first_codes[of[row]] for row in range(200, 260)]
    assert np.mean(hits) >= 0.9
    # The claim is worth something only because clusters do not share first codes.
    assert len(set.union(*first_codes.values())) == sum(map(len, first_codes.values()))


def test_normalised_residuals_do_not_collapse_where_plain_ones_do():
    # A dense heap and a sparse far crowd: most residuals are small, some are large.
    generator = np.random.default_rng(0)
    embeddings, _ = clusters(1500, 12, 4, dimensions=32, spread=0.3)
    embeddings[::3] += (0.8 * generator.normal(size=embeddings[::3].shape)).astype(np.float32)
    sizes = {}
    for residuals in ("plain", "normalised"):
        quantiser = fit_residual_kmeans(embeddings, 3, 64, 0, residuals=residuals)
        sizes[residuals] = diagnostics(quantiser.encode(embeddings), 64)
    assert min(sizes["normalised"]["perplexity"][1:]) > 58
    assert max(sizes["plain"]["perplexity"][1:]) < 40
    assert sizes["normalised"]["collision"] < 0.1 < sizes["plain"]["collision"]


@pytest.mark.parametrize("residuals", ["plain", "normalised"])
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 99), size=st.integers(4, 20))
def test_a_balanced_last_level_is_balanced(residuals, seed, size):
    embeddings, _ = clusters(40 * size, 6, seed, spread=0.6)
    embeddings[: 10 * size] *= np.linspace(1, 3, 24, dtype=np.float32)
    codes = {
        balanced: fit_residual_kmeans(
            embeddings, 2, size, seed, residuals=residuals, balanced_last_level=balanced
        ).encode(embeddings)
        for balanced in (False, True)
    }
    counts = np.bincount(codes[True][:, 1], minlength=size)
    assert counts.max() <= 1.2 * 40
    assert counts.min() >= 0.8 * 40
    assert np.array_equal(codes[True][:, 0], codes[False][:, 0]), "only the last level is balanced"
    assert counts.std() <= np.bincount(codes[False][:, 1], minlength=size).std()


def test_rqvae_learns_to_reconstruct_and_uses_its_codes():
    """Guards the scale of the inputs: with the variance of unit vectors the codebooks collapse."""
    generator = np.random.default_rng(0)
    # Structure that a code per level can say: a sum of three things with eight values each.
    parts = generator.normal(size=(3, 8, 64))
    choice = generator.integers(8, size=(1500, 3))
    embeddings = sum(parts[level][choice[:, level]] * (1, 0.6, 0.4)[level] for level in range(3))
    quantiser, losses = fit_rqvae(unit(embeddings), 3, 16, 0, hidden=64, latent=16, epochs=60)
    assert losses[-1] < 0.6 * losses[0]
    facts = diagnostics(quantiser.encode(embeddings), 16)
    assert min(facts["perplexity"]) > 6
    assert min(facts["utilisation"]) > 0.8


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), rule=st.sampled_from(["plain", "normalised"]))
def test_residuals_are_what_the_centroids_leave(seed, rule):
    generator = np.random.default_rng(seed)
    points, centroids = unit(generator.normal(size=(9, 5))), unit(generator.normal(size=(9, 5)))
    left = next_residuals(points, centroids, rule)
    if rule == "plain":
        assert np.allclose(left + centroids, points, atol=1e-6)
    else:
        assert np.allclose((left * centroids).sum(axis=1), 0, atol=1e-4)
        assert np.allclose(np.linalg.norm(left, axis=1), 1, atol=1e-4)
    assert np.allclose(next_residuals(points, points, rule), 0)


@pytest.mark.parametrize(("items", "expected"), [(1, 4), (40, 14), (800, 100), (4344, 256), (100_000, 256)])
def test_small_catalogues_get_small_codebooks_with_room(items, expected):
    size = shrunk_codebook_size(items, 3, 256)
    assert size == expected
    assert size**3 > 4 * items


def test_a_catalogue_that_does_not_fit_names_the_settings():
    with pytest.raises(SettingsError, match=r"items.codebook_size=4 make 16 semantic ids for 17 items"):
        fit_quantiser("normalised_kmeans", np.eye(17, dtype=np.float32), 2, 4, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_one_item_is_enough(kind):
    quantiser = fit(kind, np.ones((1, 8), dtype=np.float32), 3, 256)
    assert len(assign_codes(["a"], np.ones((1, 8)), quantiser, {})["a"]) == 3


def test_diagnostics_by_hand():
    facts = diagnostics(np.array([[0, 0], [0, 0], [0, 1], [1, 1]]), 2)
    assert facts["collision"] == pytest.approx(0.25)
    assert facts["sharing"] == pytest.approx(0.5)
    assert facts["utilisation"] == [1, 1]
    assert facts["perplexity"][1] == pytest.approx(2)
    assert facts["perplexity"][0] == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))


def test_alignment_by_hand():
    codes = {"a": (0, 0), "b": (0, 1), "c": (1, 0), "d": (1, 1)}
    # Pairs: a-b, b-a, c-d, d-c. Given that two items differ, one in three shares the first code by chance.
    assert prefix_alignment(["aba", "cdc"], codes) == [pytest.approx(3), None]
    assert prefix_alignment(["aca", "bdb"], codes) == [pytest.approx(0), None]
    assert prefix_alignment(["aa", "a", "", "x"], codes) == [None, None], "repeats and unknown items tell nothing"


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999))
def test_alignment_is_one_by_chance_and_large_for_topical_users(seed):
    generator = np.random.default_rng(seed)
    codes = {item: (item % 5, item % 10, item) for item in range(50)}
    mixed = [generator.choice(50, size=40, p=np.arange(50) / np.arange(50).sum()).tolist() for _ in range(200)]
    first, second, third = prefix_alignment(mixed, codes)
    assert first == pytest.approx(1, abs=0.15)
    assert second == pytest.approx(1, abs=0.25)
    assert third is None
    topical = [[5 * item + user % 5 for item in generator.integers(10, size=20).tolist()] for user in range(100)]
    assert prefix_alignment(topical, codes)[0] > 4
