"""Collision-free semantic ids: what each resolver promises, on random and on made-to-collide catalogues."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgrec_core.errors import InputError
from sgrec_core.items.codes import assign_codes, id_shape, resolve_supplied_codes
from sgrec_core.items.quantiser import Quantiser, unit
from sgrec_core.items.residual_kmeans import fit_residual_kmeans

RESOLVERS = ("reassign", "extra_token")


def random_embeddings(count: int, seed: int, dimensions: int = 16) -> np.ndarray:
    """Vectors in clusters, some of them equal, as catalogues have."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(max(count // 6, 1), dimensions))
    vectors = centres[generator.integers(len(centres), size=count)] + 0.3 * generator.normal(size=(count, dimensions))
    vectors[count // 2 :: 5] = vectors[0]
    return vectors.astype(np.float32)


def random_quantiser(
    seed: int, levels: int, size: int, residuals: str = "normalised", dimensions: int = 16
) -> Quantiser:
    codebooks = unit(np.random.default_rng(seed).normal(size=(levels, size, dimensions)))
    return Quantiser(codebooks=codebooks, residuals=residuals)


def ids(count: int) -> list[str]:
    return [f"i{number:03d}" for number in range(count)]


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(2, 60),
    old=st.integers(0, 60),
    seed=st.integers(0, 99),
    size=st.integers(8, 10),
    residuals=st.sampled_from(["plain", "normalised"]),
    resolver=st.sampled_from(RESOLVERS),
)
def test_codes_are_unique_kept_and_independent_of_order(count, old, seed, size, residuals, resolver):
    old = min(old, count)
    embeddings = random_embeddings(count, seed)
    quantiser = random_quantiser(seed, 2, size, residuals)
    items = ids(count)
    first = assign_codes(items[:old], embeddings[:old], quantiser, {}, resolver=resolver)
    second = assign_codes(items, embeddings, quantiser, first, resolver=resolver)
    assert set(second) == set(items[old:]), "old items are not coded again"
    everything = {**first, **second}
    assert len(set(everything.values())) == count
    assert {len(codes) for codes in everything.values()} == {id_shape(quantiser, resolver, np.zeros((0, 2)))[0]}
    assert all(0 <= code < size for codes in everything.values() for code in codes)
    order = np.random.default_rng(seed + 1).permutation(count)
    again = assign_codes([items[i] for i in order], embeddings[order], quantiser, first, resolver=resolver)
    assert again == second


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(2, 24),
    taken=st.integers(0, 12),
    seed=st.integers(0, 999),
    residuals=st.sampled_from(["plain", "normalised"]),
)
def test_reassignment_costs_no_more_than_first_come_first_served(count, taken, seed, residuals):
    # One level: all items share the empty prefix, and all of them fit.
    quantiser = random_quantiser(seed, 1, 40, residuals)
    embeddings = random_embeddings(count, seed)
    old = {
        f"old{number}": (int(code),) for number, code in enumerate(np.random.default_rng(seed).permutation(40)[:taken])
    }
    costs = quantiser.costs(embeddings, np.empty((count, 0), dtype=np.int64))
    free = sorted(set(range(40)) - {code for (code,) in old.values()})
    greedy = 0.0
    for row in np.argsort(costs.min(axis=1), kind="stable"):
        code = min(free, key=lambda code, row=row: costs[row, code])
        free.remove(code)
        greedy += costs[row, code]
    codes = assign_codes(ids(count), embeddings, quantiser, old)
    total = sum(costs[row, codes[item][0]] for row, item in enumerate(ids(count)))
    assert total <= greedy + 1e-4 * abs(greedy)


def test_reassignment_is_better_than_first_come_first_served_where_that_is_short_sighted():
    # Both want code 0. "a" is nearer to it, but "b" has nowhere near to go.
    quantiser = Quantiser(codebooks=np.array([[[0.0, 1], [0.2, 1], [9, 9]]], dtype=np.float32), residuals="plain")
    points = np.array([[0.01, 1], [-0.1, 1]], dtype=np.float32)
    costs = quantiser.costs(points, np.empty((2, 0), dtype=np.int64))
    assert costs.argmin(axis=1).tolist() == [0, 0]
    assert costs[0, 0] < costs[1, 0]
    assert assign_codes(["a", "b"], points, quantiser, {}) == {"a": (1,), "b": (0,)}


def test_what_is_alone_keeps_its_code_and_what_collides_its_prefix_while_that_has_room():
    embeddings = random_embeddings(300, 3, 32)
    quantiser = fit_residual_kmeans(embeddings, 3, 256, 0)
    items = ids(300)
    wanted = dict(zip(items, map(tuple, quantiser.encode(embeddings).tolist()), strict=True))
    codes = assign_codes(items, embeddings, quantiser, {})
    assert set(wanted.values()) <= set(codes.values()), "each wanted tuple is used"
    in_prefix = [w[:2] for w in wanted.values()]
    for item in items:
        assert codes[item][:2] == wanted[item][:2]
        if in_prefix.count(wanted[item][:2]) == 1:
            assert codes[item] == wanted[item]


@pytest.mark.parametrize("residuals", ["plain", "normalised"])
def test_a_full_prefix_overflows_to_the_next_best_one(residuals):
    # Two levels of two codes; all items point at centroid 0.
    quantiser = Quantiser(
        codebooks=np.stack([np.eye(4, dtype=np.float32)[:2], np.eye(4, dtype=np.float32)[2:]]), residuals=residuals
    )
    embeddings = np.tile(np.array([[1, 0.2, 0.1, 0]], dtype=np.float32), (4, 1))
    codes = assign_codes(list("abcd"), embeddings, quantiser, {})
    assert sorted(codes.values()) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    # A night later: the nearest prefix holds the old items, and these stay.
    old = assign_codes(list("ab"), embeddings[:2], quantiser, {})
    assert {codes[:1] for codes in old.values()} == {(0,)}
    assert {codes[:1] for codes in assign_codes(["c"], embeddings[:1], quantiser, old).values()} == {(1,)}
    with pytest.raises(InputError, match=r"5 items but only 4 semantic ids \(2 levels of 2 codes\)"):
        assign_codes(["e"], embeddings[:1], quantiser, codes)


def test_the_overflow_of_a_prefix_are_those_it_serves_worst():
    codebooks = np.array([[[1, 0, 0], [0, 1, 0]], [[0, 0, 0.1], [0, 0, -0.1]]], dtype=np.float32)
    quantiser = Quantiser(codebooks=codebooks, residuals="plain")
    points = unit(np.array([[1, 0, 0.1], [1, 0.7, 0], [1, 0, -0.1]]))
    codes = assign_codes(["near", "far", "too"], points, quantiser, {})
    assert codes == {"near": (0, 0), "too": (0, 1), "far": (1, 0)}


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 40), old=st.integers(0, 40), seed=st.integers(0, 99))
def test_the_extra_token_numbers_each_bucket(count, old, seed):
    old = min(old, count)
    embeddings = random_embeddings(count, seed)
    quantiser = random_quantiser(seed, 2, 3)
    wanted = quantiser.encode(embeddings)
    levels, size = id_shape(quantiser, "extra_token", wanted)
    assert (levels, size >= 2 * max(np.unique(wanted, axis=0, return_counts=True)[1])) == (3, True)
    codes = assign_codes(ids(old), embeddings[:old], quantiser, {}, resolver="extra_token", codebook_size=size)
    codes |= assign_codes(ids(count), embeddings, quantiser, codes, resolver="extra_token", codebook_size=size)
    buckets: dict[tuple[int, ...], list[int]] = {}
    for row, item in enumerate(ids(count)):
        assert codes[item][:2] == tuple(wanted[row]), "no item leaves its bucket"
        buckets.setdefault(codes[item][:2], []).append(codes[item][2])
    # Old items come first in ``ids``: their numbers are the smaller ones.
    assert all(numbers == list(range(len(numbers))) for numbers in buckets.values())


def test_a_full_bucket_overflows_to_the_next_best_tuple():
    quantiser = Quantiser(codebooks=np.eye(3, dtype=np.float32)[None], residuals="plain")
    points = np.tile(np.array([[1, 0.5, 0]], dtype=np.float32), (5, 1))
    codes = assign_codes(list("abcde"), points, quantiser, {}, resolver="extra_token", codebook_size=2)
    assert codes == {"a": (0, 0), "b": (0, 1), "c": (1, 0), "d": (1, 1), "e": (2, 0)}


def test_without_a_resolver_codes_are_the_quantisers():
    embeddings = random_embeddings(30, 5)
    quantiser = random_quantiser(5, 2, 3)
    codes = assign_codes(ids(30), embeddings, quantiser, {"i000": (0, 0)}, resolver="none")
    assert [codes[item] for item in ids(30)[1:]] == list(map(tuple, quantiser.encode(embeddings)[1:].tolist()))
    assert len(set(codes.values())) < len(codes)


@pytest.mark.parametrize("resolver", RESOLVERS)
def test_a_catalogue_of_equal_vectors_gets_codes_too(resolver):
    vectors = np.ones((200, 8), dtype=np.float32)
    quantiser = fit_residual_kmeans(vectors, 3, 8, 0)
    codes = assign_codes(ids(200), vectors, quantiser, {}, resolver=resolver)
    assert len(set(codes.values())) == 200


def test_codes_of_another_length_are_named():
    with pytest.raises(InputError, match="item 'x' has 3 codes; this tokenizer has 2"):
        assign_codes(["a"], np.ones((1, 16)), random_quantiser(0, 2, 4), {"x": (0, 0, 0)})


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
