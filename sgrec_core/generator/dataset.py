"""From tables to index arrays: the catalogue, histories, and training sequences.

An item's index is its row among the sorted ids of the day's items that have codes; -1 stands for no item.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core.generator.trie import ItemTrie
from sgrec_core.hashing import digest


@dataclass(frozen=True)
class Catalogue:
    """The items that can be recommended, and their semantic ids."""

    item_ids: pa.Array
    """[items] string, ascending."""
    codes: np.ndarray
    """[items, L] int64."""
    codebook_size: int
    tokenizer_version: str
    wanted_codes: pa.Array | None = None
    """[items] codes before collisions were resolved, null where there are none; without it all items differ."""

    @classmethod
    def build(
        cls, item_ids: pa.ChunkedArray, item_codes: pa.Table, *, codebook_size: int, tokenizer_version: str
    ) -> "Catalogue":
        """Catalogue of those of ``item_ids`` that have a row in ``item_codes`` (columns item_id, codes and,
        if they are known, wanted_codes).

        Raises ValueError when none has.
        """
        present = item_codes.filter(pc.is_in(item_codes["item_id"], value_set=item_ids.unique())).sort_by("item_id")
        if not present.num_rows:
            raise ValueError(f"none of {len(item_ids)} items has codes of tokenizer {tokenizer_version}")
        lists = present["codes"].combine_chunks()
        codes = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64).reshape(present.num_rows, -1)
        wanted = present["wanted_codes"].combine_chunks() if "wanted_codes" in present.column_names else None
        return cls(present["item_id"].combine_chunks(), codes, codebook_size, tokenizer_version, wanted)

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def trie(self) -> ItemTrie:
        """The trie of these items."""
        return ItemTrie.build(self.codes, self.codebook_size)

    @cached_property
    def identities(self) -> np.ndarray:
        """[items] a number for each semantic id as it was before collisions were resolved."""
        numbers: dict[tuple[int, ...] | int, int] = {}
        wanted = self.wanted_codes.to_pylist() if self.wanted_codes is not None else [None] * len(self)
        names = [row if codes is None else tuple(codes) for row, codes in enumerate(wanted)]
        return np.array([numbers.setdefault(name, len(numbers)) for name in names])

    @cached_property
    def digest(self) -> str:
        """Content of the catalogue, for fingerprints."""
        return digest(self.tokenizer_version, self.codebook_size, self.item_ids.to_pylist(), self.codes.tolist())

    def index(self, item_ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """[N] int32 index of each id; -1 for items that are not in the catalogue."""
        found = pc.fill_null(pc.index_in(item_ids, value_set=self.item_ids), -1)
        return np.asarray(found.to_numpy() if isinstance(found, pa.ChunkedArray) else found.to_numpy(False), np.int32)

    def ids(self, index: np.ndarray) -> list[str]:
        """Item ids of indices [N], none of them -1."""
        return self.item_ids.take(pa.array(index, pa.int64())).to_pylist()


def history_matrix(histories: pa.ChunkedArray | pa.Array, catalogue: Catalogue, max_items: int) -> np.ndarray:
    """[N, max_items] int32 indices of the newest known items of each history, oldest first, -1 after the end."""
    lists = histories.combine_chunks() if isinstance(histories, pa.ChunkedArray) else histories
    matrix = np.full((len(lists), max_items), -1, dtype=np.int32)
    index = catalogue.index(lists.flatten())
    row = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    index, row = index[index >= 0], row[index >= 0]
    lengths = np.bincount(row, minlength=len(lists))
    position = np.arange(len(row)) - (np.cumsum(lengths) - lengths)[row]
    position -= np.maximum(lengths - max_items, 0)[row]
    kept = position >= 0
    matrix[row[kept], position[kept]] = index[kept]
    return matrix


def whole_histories(histories: pa.ChunkedArray | pa.Array, catalogue: Catalogue) -> np.ndarray:
    """As `history_matrix` [N, n], also what is too old for a model to read; n is at least 1."""
    return history_matrix(histories, catalogue, max(pc.max(pc.list_value_length(histories)).as_py() or 0, 1))


@dataclass(frozen=True)
class Sequences:
    """Training sequences made of decision points."""

    items: list[np.ndarray]
    """Item indices of each sequence, oldest first."""
    first_target: list[int]
    """Items from this position on are targets of decisions, those before it history of the first one."""
    decisions: int
    """How many decision points they hold: the sum of targets."""


def chain_decisions(states: pa.Table, catalogue: Catalogue, max_items: int) -> Sequences:
    """Training sequences of decision points (columns user_id, as_of, position, history, target_item).

    A decision goes on with the user's sequence when its history is what the sequence ends with, so that the
    transformer reads a user's night once and not once per decision. So does a further decision of the same request:
    its target is then predicted after the first one's, which the user did choose first. Any other decision (requests
    that overlap in time) starts a sequence of its own. Decisions for items without codes are left out.
    """
    states = states.sort_by([(name, "ascending") for name in ("user_id", "as_of", "position")])
    targets = catalogue.index(states["target_item"])
    states, targets = states.filter(pa.array(targets >= 0)), targets[targets >= 0]
    if not len(targets):
        return Sequences([], [], 0)
    histories = history_matrix(states["history"], catalogue, max_items)
    lengths = (histories >= 0).sum(axis=1)
    users, times = states["user_id"].to_pylist(), states["as_of"].to_pylist()

    sequences: list[list[int]] = []
    first_targets: list[int] = []
    for row, target in enumerate(targets.tolist()):
        history = histories[row, : lengths[row]].tolist()
        if sequences and users[row] == users[row - 1]:
            sequence = sequences[-1]
            same_request = times[row] == times[row - 1] and (histories[row] == histories[row - 1]).all()
            if same_request or sequence[-max_items:] == history:
                sequence.append(target)
                continue
        sequences.append([*history, target])
        first_targets.append(len(history))
    return Sequences([np.array(sequence) for sequence in sequences], first_targets, len(targets))
