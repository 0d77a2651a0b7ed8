"""Residual k-means and collision-free semantic ids."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgrec_core.errors import InputError, SettingsError
from sgrec_core.items import residual_kmeans
from sgrec_core.items.codes import assign_codes, resolve_supplied_codes


def random_embeddings(count: int, seed: int, dimensions: int = 16) -> np.ndarray:
    """Vectors in clusters, some of them equal, as catalogues have."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(max(count // 6, 1), dimensions))
    vectors = centres[generator.integers(len(centres), size=count)] + 0.3 * generator.normal(size=(count, dimensions))
    vectors[count // 2 :: 5] = vectors[0]
    return vectors.astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(2, 60), old=st.integers(0, 60), seed=st.integers(0, 99), size=st.integers(4, 9))
def test_codes_are_unique_kept_and_independent_of_order(count, old, seed, size):
    old = min(old, count)
    embeddings = random_embeddings(count, seed)
    codebooks = residual_kmeans.unit(np.random.default_rng(seed).normal(size=(2, max(size, 8), 16)))
    items = [f"i{number}" for number in range(count)]
    first = assign_codes(items[:old], embeddings[:old], codebooks, {})
    second = assign_codes(items, embeddings, codebooks, first)
    assert set(second) == set(items[old:]), "old items are not coded again"
    everything = {**first, **second}
    assert len(set(everything.values())) == count
    assert all(0 <= code < codebooks.shape[1] for codes in everything.values() for code in codes)
    order = np.random.default_rng(seed + 1).permutation(count)
    again = assign_codes([items[index] for index in order], embeddings[order], codebooks, first)
    assert again == second


def test_an_item_keeps_its_own_code_when_it_is_free_and_its_prefix_when_that_has_room():
    embeddings = random_embeddings(300, 3, 32)
    codebooks = residual_kmeans.fit(embeddings, 3, 256, 0)
    items = [f"i{number}" for number in range(300)]
    wanted = {
        item: tuple(codes)
        for item, codes in zip(items, residual_kmeans.encode(embeddings, codebooks).tolist(), strict=True)
    }
    codes = assign_codes(items, embeddings, codebooks, {})
    assert {wanted[item] for item in items} <= set(codes.values()), "each wanted tuple goes to one of those who want it"
    prefix_kept = [codes[item][:2] == wanted[item][:2] for item in items]
    crowded = {
        prefix
        for prefix in (w[:2] for w in wanted.values())
        if [w[:2] for w in wanted.values()].count(prefix) > codebooks.shape[1]
    }
    assert all(kept or wanted[item][:2] in crowded for item, kept in zip(items, prefix_kept, strict=True))


def test_a_full_prefix_overflows_to_the_next_best_one():
    # Two levels of two codes; all items point at centroid 0.
    codebooks = np.stack([np.eye(4, dtype=np.float32)[:2], np.eye(4, dtype=np.float32)[2:]])
    embeddings = np.tile(np.array([[1, 0.2, 0.1, 0]], dtype=np.float32), (4, 1))
    codes = assign_codes(list("abcd"), embeddings, codebooks, {})
    assert [codes[item] for item in "abcd"] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    with pytest.raises(InputError, match="5 items but only 4 semantic ids"):
        assign_codes(["e"], embeddings[:1], codebooks, codes)


def test_fit_is_deterministic_and_uses_its_codes():
    embeddings = random_embeddings(900, 1, 48)
    codebooks = residual_kmeans.fit(embeddings, 3, 64, 0)
    assert codebooks.shape == (3, 64, 48)
    assert codebooks.dtype == np.float32
    assert np.array_equal(codebooks, residual_kmeans.fit(embeddings, 3, 64, 0))
    facts = residual_kmeans.diagnostics(residual_kmeans.encode(embeddings, codebooks), 64)
    assert min(facts["perplexity"]) > 20
    # A fifth of a half of the catalogue is one vector: no quantiser can tell these apart.
    assert 0.05 < facts["collision"] < 0.5


def test_diagnostics_by_hand():
    facts = residual_kmeans.diagnostics(np.array([[0, 0], [0, 0], [0, 1], [1, 1]]), 2)
    assert facts["collision"] == pytest.approx(0.25)
    assert facts["sharing"] == pytest.approx(0.5)
    assert facts["utilisation"] == [1, 1]
    assert facts["perplexity"][1] == pytest.approx(2)
    assert facts["perplexity"][0] == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))


@pytest.mark.parametrize(("items", "expected"), [(1, 4), (40, 14), (800, 100), (4344, 256), (100_000, 256)])
def test_small_catalogues_get_small_codebooks_with_room(items, expected):
    size = residual_kmeans.shrunk_codebook_size(items, 3, 256)
    assert size == expected
    assert size**3 > 4 * items


def test_a_catalogue_that_does_not_fit_names_the_settings():
    with pytest.raises(SettingsError, match=r"items.codebook_size=4 make 16 semantic ids for 17 items"):
        residual_kmeans.fit(np.eye(17, dtype=np.float32), 2, 4, 0)


def test_one_item_is_enough():
    codebooks = residual_kmeans.fit(np.ones((1, 8), dtype=np.float32), 3, 256, 0)
    assert len(assign_codes(["a"], np.ones((1, 8)), codebooks, {})["a"]) == 3


@settings(max_examples=50, deadline=None)
@given(
    supplied=st.lists(st.none() | st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=25),
    seed=st.integers(0, 9),
)
def test_supplied_codes_are_used_as_they_are_and_collisions_resolved(supplied, seed):
    items = [f"i{number:02d}" for number in range(len(supplied))]
    codes = resolve_supplied_codes(items, supplied, {}, levels=2, codebook_size=5)
    assert len(set(codes.values())) == len(items)
    for item, wanted in zip(items, supplied, strict=True):
        if wanted is not None and supplied.index(wanted) == items.index(item):
            assert codes[item] == wanted, "the first by id keeps the supplied code"
    order = np.random.default_rng(seed).permutation(len(items))
    shuffled = resolve_supplied_codes(
        [items[i] for i in order], [supplied[i] for i in order], {}, levels=2, codebook_size=5
    )
    assert shuffled == codes
    half = {item: codes[item] for item in items[::2]}
    later = resolve_supplied_codes(items, supplied, half, levels=2, codebook_size=5)
    assert not set(later) & set(half)
    assert not set(later.values()) & set(half.values())


@pytest.mark.parametrize("codes", [(1, 2, 3), (1, 5), (-1, 0)])
def test_invalid_supplied_codes_name_the_item(codes):
    with pytest.raises(InputError, match=r"item 'x', column supplied_codes.*valid are 2 codes from 0 to 4"):
        resolve_supplied_codes(["x"], [codes], {}, levels=2, codebook_size=5)


def test_repeated_ids_are_an_error():
    with pytest.raises(InputError, match="'a' comes 2 times"):
        resolve_supplied_codes(["a", "a"], [None, None], {}, levels=2, codebook_size=5)
