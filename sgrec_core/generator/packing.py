"""Training windows, and batches of them laid end to end, without padding."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Training windows: W sequences of at most max_items + 1 items, padded on the right."""

    items: np.ndarray
    """[W, n] int32 item indices, -1 after the end."""
    first_target: np.ndarray
    """[W] int32: items at this position and after it are predicted, those before it only read."""

    @property
    def targets(self) -> int:
        """How many items are predicted."""
        return int(((self.items >= 0).sum(axis=1) - self.first_target).sum())


def cut_windows(sequences: list[np.ndarray], first_target: list[int], max_items: int) -> Windows:
    """Cut sequences of item indices into windows of at most ``max_items`` + 1 items.

    Items of sequence s from position ``first_target[s]`` on are targets. Each target lies in exactly one window as
    a target; in a sequence that needs several windows each window's targets follow at least ``max_items`` // 2
    items of history.
    """
    size = max_items + 1
    pieces: list[np.ndarray] = []
    starts: list[int] = []
    for sequence, first in zip(sequences, first_target, strict=True):
        while first < len(sequence):
            # Where targets remain beyond this window, the next one starts half a history earlier.
            begin = 0 if len(sequence) <= size else max(0, first - max_items // 2)
            begin = max(0, min(begin, len(sequence) - size))
            end = min(begin + size, len(sequence))
            pieces.append(sequence[begin:end])
            starts.append(first - begin)
            first = end
    items = np.full((len(pieces), size), -1, dtype=np.int32)
    for row, piece in enumerate(pieces):
        items[row, : len(piece)] = piece
    return Windows(items, np.array(starts, dtype=np.int32))


@dataclass(frozen=True)
class Packing:
    """Where sequences of items begin that are laid end to end: S sequences, I items in all."""

    position: Tensor
    """[I] int64 position of each item in its sequence."""
    bounds: Tensor
    """[S' + 1] int32 first item of each sequence, then I; sequences after S are empty and keep the shape."""
    longest: int
    """No sequence has more items."""
    runs: tuple[tuple[int, int], ...]
    """(sequences, items of each) of neighbours of the same length: a rectangle, read without padding."""

    @classmethod
    def of(cls, lengths: np.ndarray, device: torch.device | str, *, count: int = 0, longest: int = 0) -> "Packing":
        """Packing of sequences with ``lengths`` [S] items each, none 0. Equal lengths should be neighbours.

        ``count`` is the least S', ``longest`` the least `longest`: given alike for all batches they leave nothing
        but contents to differ, so that a compiled or captured step serves them all.
        """
        ends = np.cumsum(lengths)
        bounds = np.full(max(count, len(lengths)) + 1, ends[-1], dtype=np.int32)
        bounds[0] = 0
        bounds[1 : 1 + len(ends)] = ends
        position = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        changes = np.flatnonzero(np.diff(lengths)) + 1
        runs = tuple((len(run), int(run[0])) for run in np.split(lengths, changes))
        return cls(
            torch.from_numpy(position).to(device),
            torch.from_numpy(bounds).to(device),
            max(longest, int(lengths.max())),
            runs,
        )

    def rectangles(self, values: Tensor) -> list[Tensor]:
        """Values [I * k, ...] of the items, k for each, as one [sequences, items * k, ...] a run; views."""
        each = len(values) // len(self.position)
        parts = values.split([count * items * each for count, items in self.runs])
        return [part.unflatten(0, (count, -1)) for part, (count, _) in zip(parts, self.runs, strict=True)]


@dataclass(frozen=True)
class Batch:
    """Windows laid end to end: I items."""

    items: Tensor
    """[I] int64."""
    target: Tensor
    """[I] bool: true where the item is predicted."""
    packing: Packing

    @classmethod
    def of(cls, windows: Windows, rows: np.ndarray, device: torch.device, *, filled_to: int = 0) -> "Batch":
        """The windows ``rows``, shorter ones first.

        ``filled_to`` items, no fewer than the windows hold, give all batches the same shape: windows of items that
        nothing predicts are put behind.
        """
        lengths = (windows.items[rows] >= 0).sum(axis=1)
        order = np.argsort(lengths, kind="stable")
        items, lengths = windows.items[rows[order]], lengths[order]
        real = items >= 0
        target = real & (np.arange(items.shape[1]) >= windows.first_target[rows[order], None])
        flat, predicted = items[real], target[real]
        longest = count = 0
        if filled_to:
            longest, count = windows.items.shape[1], filled_to
            spare = filled_to - len(flat)
            lengths = np.append(
                lengths, [longest] * (spare // longest) + ([spare % longest] if spare % longest else [])
            )
            flat, predicted = np.pad(flat, (0, spare)), np.pad(predicted, (0, spare))
        return cls(
            torch.from_numpy(flat.astype(np.int64)).to(device),
            torch.from_numpy(predicted).to(device),
            Packing.of(lengths.astype(np.int64), device, count=count, longest=longest),
        )
