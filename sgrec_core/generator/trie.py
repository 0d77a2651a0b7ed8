"""The trie of valid items: which code may follow which, as flat tensors.

Nodes are numbered breadth first, children in the order of their codes, so the leaves come last and are the items in
lexicographic order of their codes.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ItemTrie:
    """Items are indices 0..items-1, the rows of ``codes``. Build with `ItemTrie.build`."""

    codes: Tensor
    """[items, L] int64."""
    children: Tensor
    """[inner nodes, codebook size] int32 node that the code leads to, 0 where it leads to none."""
    valid: Tensor
    """[inner nodes, codebook size] whether it leads to one: read at every step of a search, a quarter of the bytes."""
    path: Tensor
    """[items, L] node in which each code of an item is chosen; ``path[:, 0]`` is the root, 0."""
    leaf_items: Tensor
    """[items] item of each leaf, leaves in the order of their node numbers."""
    settled: Tensor
    """[nodes] where only one item lies below a node: its leaf; elsewhere the node itself."""
    nodes_below: tuple[int, ...]
    """Number of nodes that the codes of each level lead to; the last is the number of items."""

    @classmethod
    def build(cls, codes: np.ndarray | Tensor, codebook_size: int) -> "ItemTrie":
        """Trie of codes [items, L], each in [0, codebook_size) and no two rows alike.

        Raises ValueError otherwise, naming the rows.
        """
        table = np.asarray(codes, dtype=np.int64)
        if table.ndim != 2 or table.size == 0:
            raise ValueError(f"codes must be [items, levels] with at least one item, not {table.shape}")
        if table.min() < 0 or table.max() >= codebook_size:
            row = int(np.nonzero((table < 0) | (table >= codebook_size))[0][0])
            raise ValueError(f"codes {table[row].tolist()} of item {row} are not all in [0, {codebook_size})")
        items, levels = table.shape
        order = np.lexsort(table.T[::-1])
        ordered = table[order]
        # A row opens a new node at depth d when its first d codes differ from those of the row above it.
        fresh = np.ones((items, levels), dtype=bool)
        fresh[1:] = np.logical_or.accumulate(ordered[1:] != ordered[:-1], axis=1)
        if not fresh[:, -1].all():
            row = int(np.nonzero(~fresh[:, -1])[0][0])
            pair = sorted((int(order[row - 1]), int(order[row])))
            raise ValueError(f"items {pair[0]} and {pair[1]} share the codes {ordered[row].tolist()}")
        node = np.zeros(items, dtype=np.int64)
        path = np.empty((items, levels), dtype=np.int64)
        edges = []
        nodes_of_level = []
        first = 1
        for level in range(levels):
            path[order, level] = node
            opens = fresh[:, level]
            edges.append((node * codebook_size + ordered[:, level])[opens])
            node = first + np.cumsum(opens) - 1
            first += int(opens.sum())
            nodes_of_level.append(node)
        flat = np.concatenate(edges)
        children = np.zeros((first - items, codebook_size), dtype=np.int32)
        children.reshape(-1)[flat] = 1 + np.arange(len(flat))
        settled = np.arange(first)
        for nodes in nodes_of_level:
            alone = np.bincount(nodes, minlength=first)[nodes] == 1
            settled[nodes[alone]] = nodes_of_level[-1][alone]
        return cls(
            codes=torch.from_numpy(table.copy()),
            children=torch.from_numpy(children),
            valid=torch.from_numpy(children > 0),
            path=torch.from_numpy(path),
            leaf_items=torch.from_numpy(order),
            settled=torch.from_numpy(settled),
            nodes_below=tuple(len(level_edges) for level_edges in edges),
        )

    @property
    def items(self) -> int:
        return self.codes.shape[0]

    @property
    def levels(self) -> int:
        return self.codes.shape[1]

    @property
    def codebook_size(self) -> int:
        return self.children.shape[1]

    def to(self, device: torch.device | str) -> "ItemTrie":
        """The same trie on another device."""
        return ItemTrie(
            codes=self.codes.to(device),
            children=self.children.to(device),
            valid=self.valid.to(device),
            path=self.path.to(device),
            leaf_items=self.leaf_items.to(device),
            settled=self.settled.to(device),
            nodes_below=self.nodes_below,
        )

    def child(self, node: Tensor, code: Tensor) -> Tensor:
        """Nodes that valid (node, code) pairs lead to, any shape."""
        return self.children[node, code].long()

    @cached_property
    def single(self) -> Tensor:
        """[inner nodes] whether only one code is valid there."""
        return self.valid.sum(dim=1) == 1

    def forced(self, items: Tensor) -> Tensor:
        """[..., L] whether each code of items [...] is the only valid one: it has probability 1 under any policy."""
        return self.single[self.path[items]]

    def is_leaf(self, node: Tensor) -> Tensor:
        """Whether nodes stand for whole items."""
        return node >= self.children.shape[0]

    def item(self, leaf: Tensor) -> Tensor:
        """Items of leaf nodes."""
        return self.leaf_items[leaf - self.children.shape[0]]
