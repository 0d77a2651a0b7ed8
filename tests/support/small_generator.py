"""Small generators whose every probability can be enumerated, and what belongs to them."""

import numpy as np
import torch
from plain_reading import sequence_logits, sequence_states

from sgrec_core.generator import Generator, GeneratorConfig, ItemTrie
from sgrec_core.generator.packing import Windows, cut_windows


def small_generator(
    levels: int, codebook_size: int, seed: int = 0, sharpness: float = 20.0, items: int = 0, followers: int = 0
) -> Generator:
    """A random model whose probabilities are far from uniform, so that order is a real question.

    With ``items`` it has an item head, to be aligned with a trie of as many, and with ``followers`` a memory.
    """
    torch.manual_seed(seed)
    shape = {"width": 16, "layers": 2, "heads": 2, "max_items": 4, "dropout": 0.1}
    weights = {"item_weight": 0.7, "followers": followers, "memory_weight": 0.6}
    model = Generator(GeneratorConfig(levels=levels, codebook_size=codebook_size, items=items, **weights, **shape))
    if model.memory is not None:
        model.remember(some_windows(items, seed))
    with torch.no_grad():
        if model.item_head is not None:
            model.item_head.own.normal_(std=0.02)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(sharpness)
    return model.eval()


def some_windows(items: int, seed: int, count: int = 10) -> Windows:
    """Random sequences of two to six items, some of which begin with items that are no targets."""
    draws = np.random.default_rng(seed)
    sequences = [draws.integers(0, items, draws.integers(2, 7)) for _ in range(count)]
    return cut_windows(sequences, [int(draws.integers(0, len(sequence))) for sequence in sequences], 4)


def all_codes(levels: int, codebook_size: int) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.arange(codebook_size)] * levels, indexing="ij"), -1).reshape(-1, levels)


def knows(model: Generator, trie: ItemTrie) -> None:
    """Have the rows that the item head was drawn with stand for the items of ``trie``."""
    if model.item_head is not None:
        model.item_head.codes = trie.codes.clone()


def reference_log_probs(model: Generator, trie: ItemTrie, history: torch.Tensor) -> np.ndarray:
    """[items, L] from one full forward pass per item, no cache, no trie: prefixes are compared as lists."""
    codes = trie.codes.tolist()
    read = [item for item in history.tolist() if item >= 0]
    result = np.zeros((len(codes), trie.levels))
    for item, target in enumerate(codes):
        sequence = torch.tensor([*(codes[i] for i in read), target])[None]
        with torch.no_grad():
            logits = sequence_logits(model.encoder, sequence)[0, -1].double()
        for level in range(trie.levels):
            valid = sorted({other[level] for other in codes if other[:level] == target[:level]})
            chosen = logits[level, valid]
            if model.item_head is not None:
                below = [[other[: level + 1] == [*target[:level], code] for other in codes] for code in valid]
                masses = [item_probabilities(model, sequence, read)[row].sum() for row in torch.tensor(below)]
                weight = model.config.item_weight
                chosen = (1 - weight) * chosen + weight * torch.stack(masses).log()
            result[item, level] = chosen.log_softmax(0)[valid.index(target[level])]
    return result


def item_probabilities(model: Generator, sequence: torch.Tensor, read: list[int]) -> torch.Tensor:
    """[items] what item head and memory expect after all items of a sequence [1, n, L] but the last, items ``read``."""
    with torch.no_grad():
        hidden = sequence_states(model.encoder, sequence)[0, -1, 0]
        head = model.item_head
        vectors = torch.stack(
            [
                own + sum(head.of_codes[level, code] for level, code in enumerate(codes))
                for own, codes in zip(head.own, head.codes.tolist(), strict=True)
            ]
        )
        logits = (vectors @ hidden).double()
        if model.memory is not None:
            remembered = model.memory.log_probs(torch.tensor([[*read, -1]]))[0]
            weight = model.config.memory_weight
            logits = (1 - weight) * logits + weight * remembered
        return logits.softmax(0)
