"""How good semantic ids are, told from the codes alone: how items spread, and whether prefixes mean something."""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

Item = TypeVar("Item", bound=Hashable)


def diagnostics(codes: np.ndarray, codebook_size: int) -> dict[str, Any]:
    """How well a tokenizer spreads items: ``codes`` [N, L] before collisions are resolved.

    ``collision`` = 1 - unique/N; ``sharing`` = share of items whose tuple another item has too; per level
    ``utilisation`` = share of codes used and ``perplexity`` = exp(entropy of the code's distribution): at most
    ``codebook_size``, and the one that does not mislead: all codes can be in use while a few have nearly all items.
    """
    if len(codes) == 0:
        return {"items": 0, "collision": 0.0, "sharing": 0.0, "utilisation": [], "perplexity": []}
    buckets = Counter(map(tuple, codes.tolist()))
    utilisation, perplexity = [], []
    for level in range(codes.shape[1]):
        counts = np.unique(codes[:, level], return_counts=True)[1]
        shares = counts / counts.sum()
        utilisation.append(float(len(counts) / codebook_size))
        perplexity.append(float(np.exp(-(shares * np.log(shares)).sum())))
    return {
        "items": len(codes),
        "collision": 1 - len(buckets) / len(codes),
        "sharing": sum(count for count in buckets.values() if count > 1) / len(codes),
        "utilisation": utilisation,
        "perplexity": perplexity,
    }


def prefix_alignment(sequences: Iterable[Sequence[Item]], codes: Mapping[Item, Sequence[int]]) -> list[float | None]:
    """Do items that follow each other share code prefixes more often than chance? A lift for each depth 1..L.

    Of all pairs of neighbours in ``sequences`` (item ids in order of time) that are two different items with ``codes``,
    the share with equal first d codes, divided by the share expected if first and second item were drawn independently
    with the frequencies they have among these pairs, given that they differ. 1 is chance. None where chance is zero:
    there are no pairs, or no two items share a prefix so deep, as at the last level of collision-free codes.
    """
    levels = len(next(iter(codes.values()), ()))
    pairs = Counter(
        (first, second)
        for sequence in sequences
        for first, second in pairwise(sequence)
        if first != second and first in codes and second in codes
    )
    total = sum(pairs.values())
    firsts: Counter[Item] = Counter()
    seconds: Counter[Item] = Counter()
    for (first, second), count in pairs.items():
        firsts[first] += count
        seconds[second] += count
    # Products of counts are whole numbers: chance is exactly zero where no two items share a prefix.
    same_item = sum(count * seconds[item] for item, count in firsts.items())
    lifts: list[float | None] = []
    for depth in range(1, levels + 1):
        prefix = {item: tuple(codes[item][:depth]) for item in firsts.keys() | seconds.keys()}
        equal = sum(count for (first, second), count in pairs.items() if prefix[first] == prefix[second])
        first_prefixes: Counter[tuple[int, ...]] = Counter()
        second_prefixes: Counter[tuple[int, ...]] = Counter()
        for item, count in firsts.items():
            first_prefixes[prefix[item]] += count
        for item, count in seconds.items():
            second_prefixes[prefix[item]] += count
        by_chance = sum(count * second_prefixes[key] for key, count in first_prefixes.items()) - same_item
        lifts.append(None if by_chance == 0 else (equal / total) * (total**2 - same_item) / by_chance)
    return lifts
