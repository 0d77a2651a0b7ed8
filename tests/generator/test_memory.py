"""The memory of transitions against counting by hand, and when the catalogue changes."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgrec_core.generator.memory import FADING, REACH, SMOOTHING, UNSEEN, TransitionMemory
from sgrec_core.generator.packing import cut_windows

ITEMS, MAX_ITEMS = 12, 8


@st.composite
def sequences(draw: st.DrawFn) -> tuple[list[np.ndarray], list[int]]:
    """Item sequences that fit into a window, and from where on their items are targets."""
    lists = draw(st.lists(st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=7), min_size=1, max_size=6))
    return [np.array(items) for items in lists], [draw(st.integers(0, len(items) - 1)) for items in lists]


def memory_of(sequences: list[np.ndarray], first_target: list[int], followers: int = ITEMS) -> TransitionMemory:
    memory = TransitionMemory(ITEMS, followers)
    memory.count(cut_windows(sequences, first_target, MAX_ITEMS))
    return memory


def counted(sequences: list[np.ndarray], first_target: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """[V, V] counts of what followed what, and [V] how often each item was a target."""
    counts, popularity = np.zeros((ITEMS, ITEMS)), np.zeros(ITEMS)
    for sequence, first in zip(sequences, first_target, strict=True):
        for place in range(first, len(sequence)):
            popularity[sequence[place]] += 1
            for gap in range(1, min(REACH, place) + 1):
                counts[sequence[place - gap], sequence[place]] += 1 / gap
    return counts, popularity


def expected(counts: np.ndarray, popularity: np.ndarray, history: list[int]) -> np.ndarray:
    """[V] the definition, item by item of the history."""
    popular = (popularity + UNSEEN) / (popularity + UNSEEN).sum()
    if not history:
        return popular
    say = np.array([FADING**age for age in range(len(history))])[::-1]
    each = [(counts[item] + SMOOTHING * popular) / (counts[item].sum() + SMOOTHING) for item in history]
    return say @ np.array(each) / say.sum()


@given(sequences(), st.lists(st.integers(0, ITEMS - 1), max_size=5))
@settings(max_examples=60, deadline=None)
def test_it_is_the_smoothed_share_of_what_followed_the_items_of_the_history(
    drawn: tuple[list[np.ndarray], list[int]], history: list[int]
) -> None:
    padded = torch.tensor([[*history, -1, -1], [-1] * (len(history) + 2)])
    found = memory_of(*drawn).log_probs(padded).exp()
    counts, popularity = counted(*drawn)
    for row, items in enumerate((history, [])):
        np.testing.assert_allclose(found[row], expected(counts, popularity, items), rtol=1e-4, atol=1e-6)


def test_windows_of_a_long_sequence_count_each_transition_once_and_no_transition_to_what_is_only_read() -> None:
    sequence = np.arange(40) % ITEMS
    memory = memory_of([sequence], [10])
    # Every target of a later window has at least four items of its history there: what is five before may be missing.
    counts, popularity = counted([sequence], [10])
    assert torch.equal(memory.popularity, torch.from_numpy(popularity).float())
    exact = np.zeros((ITEMS, ITEMS))
    np.add.at(exact, (np.arange(ITEMS)[:, None], memory.followers.numpy()), memory.counts.numpy())
    assert (exact <= counts + 1e-6).all()
    assert exact.sum() > 0.95 * counts.sum()


@given(sequences(), st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_what_is_not_kept_of_an_items_followers_counts_as_popularity(
    drawn: tuple[list[np.ndarray], list[int]], history: list[int]
) -> None:
    counts, popularity = counted(*drawn)
    kept = np.zeros_like(counts)
    for item, row in enumerate(counts):
        # Rounded, because sums of 1 / gap in another order must not decide between equal counts.
        best = np.lexsort((np.arange(ITEMS), -row.round(6)))[:2]
        kept[item, best] = row[best]
    popular = (popularity + UNSEEN) / (popularity + UNSEEN).sum()
    for item in range(ITEMS):
        kept[item] += (counts[item] - kept[item]).sum() * popular
    found = memory_of(*drawn, followers=2).log_probs(torch.tensor([history])).exp()
    assert abs(found.sum().item() - 1) < 1e-5
    np.testing.assert_allclose(found[0], expected(kept, popularity, history), rtol=1e-4, atol=1e-6)


@given(sequences(), st.permutations(range(-2, ITEMS)), st.integers(1, ITEMS))
@settings(max_examples=40, deadline=None)
def test_another_catalogue_keeps_the_transitions_between_items_that_stay(
    drawn: tuple[list[np.ndarray], list[int]], order: list[int], size: int
) -> None:
    rows = torch.tensor([max(row, -1) for row in order[: size + 1]])
    memory = memory_of(*drawn)
    memory.align(rows, torch.zeros(len(rows), 1))
    counts, popularity = counted(*drawn)
    stays = rows >= 0
    # An item that has gone keeps what followed the others from being sure of the rest.
    popular = torch.where(stays, torch.from_numpy(popularity)[rows.clamp(min=0)], 0.0) + UNSEEN
    popular = (popular / popular.sum()).numpy()
    found = memory.log_probs(torch.arange(len(rows))[:, None]).exp()
    for item, row in enumerate(rows.tolist()):
        followed = counts[row] if row >= 0 else np.zeros(ITEMS)
        known = np.where(stays, followed[rows.clamp(min=0)], 0.0)
        rest = SMOOTHING + followed.sum() - known.sum()
        wanted = (known + rest * popular) / (SMOOTHING + followed.sum())
        np.testing.assert_allclose(found[item], wanted, rtol=1e-4, atol=1e-6)
