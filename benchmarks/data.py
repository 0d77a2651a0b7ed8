"""Public leave-one-out sets as arrays: what the benchmarks train and measure on."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from sgrec_core.generator import ItemTrie
from sgrec_core.generator.packing import Windows, cut_windows
from sgrec_core.items import TextEncoder, item_text
from sgrec_core.items.codes import assign_codes
from sgrec_core.items.fitting import fit_quantiser
from sgrec_core.logs.adaptors import parse_source, read_codes, read_public_set

MAX_HISTORY = 20
LEVELS, CODEBOOK_SIZE = 3, 256


@dataclass(frozen=True)
class LeaveOneOut:
    """U users with at least three items each; items are rows of the catalogue."""

    name: str
    sequences: list[np.ndarray]
    """Item indices of each user in order of time; the last is the test item, the one before the validation item."""
    codes: np.ndarray
    """[items, L] semantic ids, collision-free: those that come with the set, or `with_text_codes`."""
    codebook_size: int
    texts: list[str]
    """Of each item; empty where the set has no text."""

    @property
    def trie(self) -> ItemTrie:
        return ItemTrie.build(self.codes, self.codebook_size)

    def windows(self) -> Windows:
        """Training windows: all that came before the validation item, every position but the first a target."""
        training = [sequence[:-2] for sequence in self.sequences]
        return cut_windows(training, [1] * len(training), MAX_HISTORY)

    def held_out(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Histories [U, 20] padded with -1, and targets [U], of ``validation`` or ``test``."""
        cut = {"validation": -2, "test": -1}[split]
        histories = np.full((len(self.sequences), MAX_HISTORY), -1, dtype=np.int64)
        for row, sequence in enumerate(self.sequences):
            history = sequence[:cut][-MAX_HISTORY:]
            histories[row, : len(history)] = history
        return histories, np.array([sequence[cut] for sequence in self.sequences])


def load(name: str, folder: Path) -> LeaveOneOut:
    """``scientific`` or ``beauty`` from the folder of public sets.

    Raises:
        InputError: files are missing or malformed.
    """
    source = parse_source(f"{name}:{folder / name}")
    public_set = read_public_set(source)
    index = {row["item_id"]: number for number, row in enumerate(public_set.items)}
    sequences = []
    for by_role in public_set.sequences.values():
        if "test" in by_role:
            ids = [*by_role["logged"], *by_role["validation"], *by_role["test"]]
            sequences.append(np.array([index[item] for item in ids]))
    supplied = read_codes(folder / name / "sid_index.json")
    codes = np.array([supplied[item] for item in index], dtype=np.int64)
    texts = [
        item_text(row.get("title"), row.get("brand"), row.get("category"), row.get("description"))
        for row in public_set.items
    ]
    return LeaveOneOut(name, sequences, codes, int(codes.max()) + 1, texts)


def scientific_or_random(folder: Path) -> LeaveOneOut:
    """``scientific``; where its folder is missing, random sequences with lengths like its over a random catalogue."""
    if (folder / "scientific").is_dir():
        return load("scientific", folder)
    draws = np.random.default_rng(0)
    codes = np.unique(draws.integers(0, 256, (4400, 4)), axis=0)
    # Two more than those of Scientific's training windows: three items at least, five on average, a few long ones.
    sequences = [draws.integers(0, len(codes), length) for length in 4 + draws.geometric(1 / 3, 8000)]
    return LeaveOneOut("random sequences", sequences, codes, 256, [""] * len(codes))


def text_embeddings(source: LeaveOneOut, cache: Path) -> np.ndarray:
    """[items, d] of the items' texts."""
    return TextEncoder(cache / "embeddings", threads=torch.get_num_threads()).encode(source.texts)


def with_text_codes(source: LeaveOneOut, embeddings: np.ndarray) -> LeaveOneOut:
    """The set with semantic ids that a night makes: residual k-means over text embeddings, 3 x 256, collision-free."""
    names = [f"{number:06d}" for number in range(len(embeddings))]
    quantiser = fit_quantiser("normalised_kmeans", embeddings, LEVELS, CODEBOOK_SIZE, seed=0)
    codes = assign_codes(names, embeddings, quantiser, {})
    return replace(source, codes=np.array([codes[name] for name in names]), codebook_size=quantiser.codebook_size)
