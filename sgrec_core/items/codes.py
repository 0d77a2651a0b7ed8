"""Collision-free semantic ids: every item gets a code tuple of its own, and keeps it.

An item whose tuple is taken moves to the nearest free code of the last level under the same prefix; when that
prefix is full, to the next best prefix. Items coded on earlier nights never move: the generator learnt them.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sgrec_core.errors import InputError
from sgrec_core.items import residual_kmeans

Codes = tuple[int, ...]


def assign_codes(
    new_item_ids: Sequence[str],
    embeddings: np.ndarray,
    codebooks: np.ndarray,
    taken: Mapping[str, Sequence[int]],
) -> dict[str, Codes]:
    """Codes of the new items; those in ``taken`` (item -> codes) are left as they are and not returned.

    ``embeddings`` [N, d] belong to ``new_item_ids`` row by row, ``codebooks`` is [L, K, d]. Of several items that
    want one tuple, the one nearest to its last centroid gets it. The result does not depend on the order of the
    items. Raises InputError when an id comes twice or the tuples run out.
    """
    levels, size = codebooks.shape[:2]
    order = _sorted_new_items(new_item_ids, taken)
    items = [new_item_ids[index] for index in order]
    residuals = residual_kmeans.unit(np.asarray(embeddings)[order])
    wanted = residual_kmeans.encode(residuals, codebooks)
    last = residuals
    for level in range(levels - 1):
        last = residual_kmeans.next_residual(last, codebooks[level][wanted[:, level]])
    closeness = (last * codebooks[-1][wanted[:, -1]]).sum(axis=1)
    tree = _Tree(levels, size, taken, len(items))
    losers = []
    result: dict[str, Codes] = {}
    for index in sorted(range(len(items)), key=lambda index: (-closeness[index], items[index])):
        codes = tuple(wanted[index].tolist())
        if tree.is_free(codes):
            tree.take(codes)
            result[items[index]] = codes
        else:
            losers.append(index)
    for index in losers:

        def nearest(prefix: Codes, start: np.ndarray = residuals[index]) -> list[int]:
            residual = start
            for level, code in enumerate(prefix):
                residual = residual_kmeans.next_residual(residual, codebooks[level][code])
            return np.argsort(-(codebooks[len(prefix)] @ residual), kind="stable").tolist()

        result[items[index]] = tree.take_first_free(nearest)
    return {item: result[item] for item in items}


def resolve_supplied_codes(
    new_item_ids: Sequence[str],
    supplied: Sequence[Sequence[int] | None],
    taken: Mapping[str, Sequence[int]],
    *,
    levels: int,
    codebook_size: int,
) -> dict[str, Codes]:
    """Codes of the new items from the codes that came with the catalogue, used as they are where they are free.

    Of items that share a tuple the first by id keeps it; the others take the next free code of the last level
    (and of the level above when that prefix is full). An item without codes starts from the hash of its id:
    such codes mean nothing, but the item can be recommended. Raises InputError for tuples of another length
    than ``levels`` or codes outside 0..``codebook_size``-1.
    """
    order = _sorted_new_items(new_item_ids, taken)
    tree = _Tree(levels, codebook_size, taken, len(order))
    wanted: dict[str, Codes] = {}
    for index in order:
        item, codes = new_item_ids[index], supplied[index]
        if codes is None:
            wanted[item] = hashed_codes(item, levels, codebook_size)
        elif len(codes) != levels or not all(0 <= code < codebook_size for code in codes):
            raise InputError(
                f"items: item {item!r}, column supplied_codes: {list(codes)} is not valid; valid are {levels} codes "
                f"from 0 to {codebook_size - 1}"
            )
        else:
            wanted[item] = tuple(codes)
    result: dict[str, Codes] = {}
    losers = []
    has_codes = {new_item_ids[index] for index in order if supplied[index] is not None}
    for item in sorted(wanted, key=lambda item: (item not in has_codes, item)):
        if tree.is_free(wanted[item]):
            tree.take(wanted[item])
            result[item] = wanted[item]
        else:
            losers.append(item)
    for item in losers:

        def following(prefix: Codes, start: Codes = wanted[item]) -> list[int]:
            first = start[len(prefix)]
            return [(first + step) % codebook_size for step in range(codebook_size)]

        result[item] = tree.take_first_free(following)
    return {item: result[item] for item in wanted}


def hashed_codes(item_id: str, levels: int, codebook_size: int) -> Codes:
    """A tuple made from the item's id alone."""
    digest = hashlib.blake2b(item_id.encode("utf-8", "replace"), digest_size=4 * levels).digest()
    return tuple(int.from_bytes(digest[4 * level : 4 * level + 4], "little") % codebook_size for level in range(levels))


def _sorted_new_items(item_ids: Sequence[str], taken: Mapping[str, Sequence[int]]) -> list[int]:
    twice = [item for item, count in Counter(item_ids).items() if count > 1]
    if twice:
        raise InputError(f"items: item_id {twice[0]!r} comes {Counter(item_ids)[twice[0]]} times; ids must be unique")
    return sorted((index for index, item in enumerate(item_ids) if item not in taken), key=lambda i: item_ids[i])


class _Tree:
    """Which tuples are taken, counted at every prefix, so that a full branch is seen without walking it."""

    def __init__(self, levels: int, size: int, taken: Mapping[str, Sequence[int]], coming: int) -> None:
        self.levels, self.size = levels, size
        self.used: Counter[Codes] = Counter()
        for item, codes in taken.items():
            if len(codes) != levels:
                raise InputError(f"item_codes: item {item!r} has {len(codes)} codes; this tokenizer has {levels}")
            self.take(tuple(codes))
        if len(taken) + coming > size**levels:
            raise InputError(
                f"items: {len(taken) + coming} items but only {size**levels} semantic ids ({levels} levels of "
                f"{size} codes): fit a new tokenizer with more of either"
            )

    def is_free(self, codes: Codes) -> bool:
        return codes not in self.used

    def take(self, codes: Codes) -> None:
        for depth in range(self.levels + 1):
            self.used[codes[:depth]] += 1

    def take_first_free(self, preferred: Callable[[Codes], list[int]]) -> Codes:
        """Walk down, at each level to the first child in ``preferred(prefix)`` that still has a free tuple below."""
        prefix: Codes = ()
        for level in range(self.levels):
            room = self.size ** (self.levels - level - 1)
            # ``used`` is a Counter: reading a missing prefix gives 0 and stores nothing.
            prefix += (next(code for code in preferred(prefix) if self.used[(*prefix, code)] < room),)
        self.take(prefix)
        return prefix
