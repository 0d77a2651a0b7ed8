"""Collision-free semantic ids: every item gets a code tuple of its own, and keeps it.

A quantiser gives like items like codes, and some items the same; a resolver tells those apart. Items coded on earlier
nights never move, whatever comes later: the generator learnt them.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from sgrec_core.errors import InputError
from sgrec_core.items.quantiser import Quantiser

Codes = tuple[int, ...]

Resolver = Literal["none", "extra_token", "reassign"]
"""How items with the same codes are told apart. none: not at all, to measure and for metrics of ids. extra_token: one
more level numbers the items that share a tuple. reassign: the items of a prefix are spread over the free codes of the
last level at the least total cost."""


def id_shape(quantiser: Quantiser, resolver: Resolver, codes: np.ndarray) -> tuple[int, int]:
    """Levels and codebook size of the semantic ids, given the quantiser's ``codes`` [N, L] of the catalogue at the fit.

    With ``extra_token`` the codebook size holds twice the largest bucket, so that items of later nights find room.
    """
    if resolver != "extra_token":
        return quantiser.levels, quantiser.codebook_size
    largest = max(Counter(map(tuple, codes.tolist())).values(), default=0)
    return quantiser.levels + 1, max(quantiser.codebook_size, 2 * largest)


def assign_codes(
    new_item_ids: Sequence[str],
    embeddings: np.ndarray,
    quantiser: Quantiser,
    taken: Mapping[str, Sequence[int]],
    *,
    resolver: Resolver = "reassign",
    codebook_size: int | None = None,
) -> dict[str, Codes]:
    """Codes of the new items; those in ``taken`` (item -> codes) are left as they are and not returned.

    Args:
        new_item_ids: N ids; those in ``taken`` are skipped.
        embeddings: [N, d], row by row those of ``new_item_ids``.
        quantiser: what every item of this tokenizer was coded with.
        taken: item -> codes of earlier nights, of the same tokenizer.
        resolver: what happens to items with the same codes.
        codebook_size: of the semantic ids (`id_shape`), how many items ``extra_token`` can number in a bucket; by
            default the quantiser's.

    Items whose prefix (with ``extra_token``: tuple) has no room left go to the nearest one that has. The result does
    not depend on the order of the items. Raises InputError when an id comes twice, when ``taken`` is of another length,
    or when the tuples run out.
    """
    order = _sorted_new_items(new_item_ids, taken)
    items = [new_item_ids[index] for index in order]
    embeddings = np.asarray(embeddings)[order]
    wanted = quantiser.encode(embeddings)
    if resolver == "none":
        return dict(zip(items, map(tuple, wanted.tolist()), strict=True))
    extra = resolver == "extra_token"
    sizes = [quantiser.codebook_size] * quantiser.levels
    if extra:
        sizes.append(codebook_size or quantiser.codebook_size)
    tree = _Tree(sizes, taken, len(items))
    depth = len(sizes) - 1
    codes: dict[int, Codes] = {}

    def fill(prefix: Codes, rows: list[int]) -> None:
        """Give free codes below ``prefix`` to as many of ``rows`` as there are."""
        free = tree.free_codes(prefix)
        if extra:
            chosen = list(zip(rows, free, strict=False))
        else:
            chosen = _cheapest_assignment(quantiser, embeddings, prefix, rows, free)
        for row, code in chosen:
            codes[row] = (*prefix, code)

    prefixes = map(tuple, wanted[:, :depth].tolist())
    for prefix, rows in _grouped(prefixes).items():
        # Where nobody competes there is nothing to weigh; and costs computed again could break a tie another way.
        own = [tuple(wanted[row].tolist()) for row in rows]
        if not extra and len(set(own)) == len(own) and all(map(tree.is_free, own)):
            codes.update(zip(rows, own, strict=True))
        else:
            fill(prefix, rows)
    for assigned in codes.values():
        tree.take(assigned)

    def nearest(row: int) -> Callable[[Codes], list[int]]:
        vector = embeddings[row][None]
        return lambda prefix: np.argsort(
            quantiser.costs(vector, np.array([prefix], dtype=np.int64))[0], kind="stable"
        ).tolist()

    # What a prefix cannot hold: first a prefix with room for each item, then codes for all that came to one.
    homeless = [row for row in range(len(items)) if row not in codes]
    for prefix, places in _grouped(tree.take_first_free(nearest(row), depth) for row in homeless).items():
        rows = [homeless[place] for place in places]
        fill(prefix, rows)
        for row in rows:
            tree.take_code(codes[row])
    return {item: codes[row] for row, item in enumerate(items)}


def _cheapest_assignment(
    quantiser: Quantiser, embeddings: np.ndarray, prefix: Codes, rows: list[int], free: list[int]
) -> list[tuple[int, int]]:
    """(row, code of the last level) at the least total cost; of more rows than codes the cheapest ones get them."""
    from scipy.optimize import linear_sum_assignment

    if not free:
        return []
    costs = quantiser.costs(embeddings[rows], np.tile(np.array(prefix, dtype=np.int64), (len(rows), 1)))[:, free]
    if len(rows) == 1:
        return [(rows[0], free[int(costs[0].argmin())])]
    of_rows, of_codes = linear_sum_assignment(costs)
    return [(rows[row], free[code]) for row, code in zip(of_rows.tolist(), of_codes.tolist(), strict=True)]


def _grouped(prefixes: Iterable[Codes]) -> dict[Codes, list[int]]:
    """Positions of each prefix."""
    groups: dict[Codes, list[int]] = {}
    for position, prefix in enumerate(prefixes):
        groups.setdefault(prefix, []).append(position)
    return groups


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
    tree = _Tree([codebook_size] * levels, taken, len(order))
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

    def __init__(self, sizes: Sequence[int], taken: Mapping[str, Sequence[int]], coming: int) -> None:
        """``sizes``: codes of each level."""
        self.sizes = sizes
        self.room = [math.prod(sizes[depth:]) for depth in range(len(sizes) + 1)]
        """Tuples below a prefix of each length."""
        self.used: Counter[Codes] = Counter()
        for item, codes in taken.items():
            if len(codes) != len(sizes):
                raise InputError(f"item_codes: item {item!r} has {len(codes)} codes; this tokenizer has {len(sizes)}")
            self.take(tuple(codes))
        if len(taken) + coming > self.room[0]:
            shape = " and ".join(f"{count} levels of {size} codes" for size, count in Counter(sizes).items())
            raise InputError(
                f"items: {len(taken) + coming} items but only {self.room[0]} semantic ids ({shape}): fit a new "
                f"tokenizer with more of either"
            )

    def is_free(self, codes: Codes) -> bool:
        return codes not in self.used

    def free_codes(self, prefix: Codes) -> list[int]:
        """Codes of the last level that are free below ``prefix``, a tuple without its last code."""
        return [code for code in range(self.sizes[-1]) if (*prefix, code) not in self.used]

    def take(self, codes: Codes) -> None:
        for depth in range(len(self.sizes) + 1):
            self.used[codes[:depth]] += 1

    def take_code(self, codes: Codes) -> None:
        """The last code of a tuple whose prefix has been taken already."""
        self.used[codes] += 1

    def take_first_free(self, preferred: Callable[[Codes], list[int]], depth: int | None = None) -> Codes:
        """Walk down, at each level to the first child in ``preferred(prefix)`` that still has a free tuple below.

        Takes one place below each prefix on the way. Stops at ``depth``, by default at a whole tuple.
        """
        prefix: Codes = ()
        self.used[prefix] += 1
        for level in range(len(self.sizes) if depth is None else depth):
            room = self.room[level + 1]
            # ``used`` is a Counter: reading a missing prefix gives 0 and stores nothing.
            prefix += (next(code for code in preferred(prefix) if self.used[(*prefix, code)] < room),)
            self.used[prefix] += 1
        return prefix
