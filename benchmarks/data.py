"""Public leave-one-out sets as arrays: what the benchmarks train and measure on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sgrec_core.generator import ItemTrie
from sgrec_core.generator.training import Windows, cut_windows
from sgrec_core.items import item_text
from sgrec_core.logs.adaptors import parse_source, read_codes, read_public_set

MAX_HISTORY = 20


@dataclass(frozen=True)
class LeaveOneOut:
    """U users with at least three items each; items are rows of the catalogue."""

    name: str
    sequences: list[np.ndarray]
    """Item indices of each user in order of time; the last is the test item, the one before the validation item."""
    codes: np.ndarray
    """[items, L] the semantic ids that come with the set, collision-free."""
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
