"""A code that is the only valid one has probability 1 under every policy: it counts nowhere in policy training."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from small_generator import all_codes, small_generator

from sgrec_core.generator import Generator, ItemTrie, beam_search, score_items
from sgrec_core.policy import (
    PolicyConfig,
    PolicyLoss,
    Prompts,
    RolloutConfig,
    StoredGroups,
    clipped_policy_loss,
    train_on_policy,
    train_stored,
)
from sgrec_core.rewards.advantages import standardise

STATISTICS = ("loss", "clip_fraction", "kl_reference", "ratio")
CONFIG = PolicyConfig(epochs=1, batch_size=8, learning_rate=1e-4, clip=0.2, beta=0.5, seed=0)


def forced_last() -> ItemTrie:
    """Sixteen items, told apart by two codes; the third follows from these."""
    codes = all_codes(2, 4)
    return ItemTrie.build(np.column_stack([codes, codes.sum(axis=1) % 4]), 4)


def rolled_out(trie: ItemTrie) -> tuple[Generator, StoredGroups]:
    """Eight groups of four."""
    model = small_generator(trie.levels, trie.codebook_size, sharpness=5.0)
    histories = np.array([[start, (3 * start) % trie.items, -1, -1] for start in range(8)]) % trie.items
    beams = beam_search(model, trie, torch.from_numpy(histories), width=min(4, trie.items))
    advantages = standardise(np.random.default_rng(0).normal(size=beams.items.shape))
    return model, StoredGroups(histories, beams.items.numpy(), beams.log_probs.numpy(), advantages)


def numbers(found: PolicyLoss) -> list[float]:
    return [getattr(found, name).item() for name in STATISTICS]


def log_probabilities() -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.float64, (2, 3, 2), elements=st.floats(-5, 0))


@given(
    log_probabilities(),
    log_probabilities(),
    log_probabilities(),
    hnp.arrays(np.float64, (2, 3), elements=st.floats(-2, 2)),
    st.booleans(),
    st.integers(0, 2),
)
def test_a_forced_level_changes_neither_loss_nor_statistics_nor_gradients(
    new: np.ndarray, old: np.ndarray, reference: np.ndarray, advantages: np.ndarray, per_code: bool, place: int
) -> None:
    """Wherever the forced level stands, and whether codes share an advantage or not."""
    found, gradients = [], []
    for forced in (False, True):
        policies = [torch.tensor(np.insert(x, place, 0.0, axis=2) if forced else x) for x in (new, old, reference)]
        policies[0].requires_grad_()
        of_code = np.repeat(advantages[..., None], 2, axis=2) * [1.0, 0.5] if per_code else advantages
        if per_code and forced:
            # What a method gives to a forced code cannot matter.
            of_code = np.insert(of_code, place, 7.0, axis=2)
        free = torch.tensor(np.arange(3) != place).expand(2, 3, 3) if forced else torch.ones(2, 3, 2, dtype=torch.bool)
        loss = clipped_policy_loss(*policies, torch.tensor(of_code), clip=0.2, beta=0.5, free=free)
        loss.loss.backward()
        found.append(numbers(loss))
        gradient = policies[0].grad.numpy()
        gradients.append(np.delete(gradient, place, axis=2) if forced else gradient)
    assert found[1] == pytest.approx(found[0], rel=1e-12, abs=1e-12)
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-12, atol=1e-12)


@given(log_probabilities(), log_probabilities(), hnp.arrays(np.float64, (2, 3), elements=st.floats(-2, 2)))
def test_without_forced_codes_the_mean_is_that_over_all_tokens(
    new: np.ndarray, old: np.ndarray, advantages: np.ndarray
) -> None:
    given_ = [torch.tensor(x) for x in (new, old, old, advantages)]
    plain = clipped_policy_loss(*given_, clip=0.2, beta=0.5)
    masked = clipped_policy_loss(*given_, clip=0.2, beta=0.5, free=torch.ones(new.shape, dtype=torch.bool))
    assert numbers(masked) == pytest.approx(numbers(plain), rel=1e-12)


@pytest.mark.parametrize("per_code", [False, True])
def test_groups_of_forced_codes_alone_give_a_finite_zero(per_code: bool) -> None:
    new = torch.zeros(2, 3, 2, requires_grad=True)
    advantages = torch.ones(2, 3, 2) if per_code else torch.ones(2, 3)
    free = torch.zeros(2, 3, 2, dtype=torch.bool)
    found = clipped_policy_loss(new, new.detach(), new.detach(), advantages, clip=0.2, beta=0.5, free=free)
    found.loss.backward()
    assert numbers(found) == [0, 0, 0, 0]
    assert new.grad.abs().max() == 0


def test_training_on_a_catalogue_of_one_item_learns_nothing() -> None:
    trie = ItemTrie.build(np.array([[1, 2, 3]]), 4)
    model, groups = rolled_out(trie)
    before = copy.deepcopy(model.state_dict())
    one = StoredGroups(groups.histories, groups.items, groups.log_probs, np.ones(groups.items.shape))
    log = train_stored(model, trie, one, CONFIG)
    assert [log[0][name] for name in ("loss", "entropy", "gradient_norm")] == [0, 0, 0]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("fresh", [False, True])
def test_a_step_is_that_of_the_catalogue_cut_to_its_free_levels(fresh: bool) -> None:
    """Loss, gradient and statistics; the last level counted as a third of all tokens before."""
    trie = forced_last()
    model, groups = rolled_out(trie)
    plain = copy.deepcopy(model)
    histories, items = torch.from_numpy(groups.histories), torch.from_numpy(groups.items)
    scores = score_items(plain, trie, histories, items)
    start = scores.log_probs.detach()[..., :2]
    rewards = np.random.default_rng(1).normal(size=trie.items)
    advantages = standardise(rewards[groups.items])
    found = clipped_policy_loss(
        scores.log_probs[..., :2], start, start, torch.from_numpy(advantages).float(), clip=0.2, beta=0.5
    )
    found.loss.backward()
    norm = torch.stack([p.grad.norm() for p in plain.parameters() if p.grad is not None]).norm()

    if fresh:
        rollout = RolloutConfig(
            group_size=4, method="beam", updates=1, objective="business", epsilon=1e-8, leave_out_history=False
        )
        log = train_on_policy(model, trie, Prompts(groups.histories, lambda _, some: rewards[some]), CONFIG, rollout)
    else:
        stored = StoredGroups(groups.histories, groups.items, groups.log_probs, advantages)
        log = train_stored(model, trie, stored, CONFIG)
    assert log[0]["entropy"] == pytest.approx(scores.entropy[..., :2].mean().item(), rel=1e-5)
    assert log[0]["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert log[0]["loss"] == pytest.approx(found.loss.item(), abs=1e-6)


def test_clip_fraction_and_penalty_are_shares_of_the_codes_that_can_move() -> None:
    """Half of a small catalogue's items are settled by their first code."""
    trie = ItemTrie.build(np.array([[0, 0], [0, 1], [1, 2], [2, 3]]), 4)
    assert trie.forced(torch.arange(4)).tolist() == [[False, False], [False, False], [False, True], [False, True]]
    model, groups = rolled_out(trie)
    config: dict[str, Any] = {"batch_size": 8, "clip": 1e-3, "beta": 0.1, "seed": 0}
    log = train_stored(model, trie, groups, PolicyConfig(epochs=20, learning_rate=3e-2, **config))
    # Nearly every code that can has left so narrow a range; of all codes 3/4 can.
    assert log[-1]["clip_fraction"] > 0.9
