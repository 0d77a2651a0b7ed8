"""The policy objective and its trainer."""

import copy
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rewarded_groups import fused
from small_generator import all_codes, knows, small_generator

from sgrec_core.generator import Generator, ItemTrie, beam_search, score_items
from sgrec_core.policy import (
    LOSSES,
    PolicyConfig,
    PolicyLoss,
    Prompts,
    RolloutConfig,
    StoredGroups,
    clipped_policy_loss,
    means_of_last_epoch,
    train_on_policy,
    train_stored,
    truncated_weights,
)
from sgrec_core.rewards.advantages import standardise
from sgrec_core.settings import PolicySettings


def policy(**changes: Any) -> PolicyConfig:
    values = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-4, "clip": 0.2, "beta": 1e-3, "seed": 0}
    return PolicyConfig(**{**values, **changes})


def rolled_out(items: int = 0) -> tuple[Generator, ItemTrie, StoredGroups]:
    """Eight histories, groups of four, and advantages that prefer the item ranked last; ``items`` of the item head."""
    model, trie = small_generator(2, 4, sharpness=5.0, items=items), ItemTrie.build(all_codes(2, 4), 4)
    knows(model, trie)
    histories = np.array([[start, (3 * start) % 16, -1, -1] for start in range(8)])
    beams = beam_search(model, trie, torch.from_numpy(histories), width=4)
    advantages = standardise(np.tile([0.0, 0.0, 0.0, 1.0], (8, 1)))
    return model, trie, StoredGroups(histories, beams.items.numpy(), beams.log_probs.numpy(), advantages)


def item_log_probs(model: Generator, trie: ItemTrie, groups: StoredGroups) -> np.ndarray:
    with torch.no_grad():
        scores = score_items(model, trie, torch.from_numpy(groups.histories), torch.from_numpy(groups.items))
    return scores.log_probs.sum(-1).numpy()


@pytest.mark.parametrize("items", [0, 16])
def test_training_raises_the_preferred_items_and_reports_its_steps(items: int) -> None:
    model, trie, groups = rolled_out(items)
    before = item_log_probs(model, trie, groups)
    seen = []
    config = policy(epochs=10, batch_size=4, learning_rate=3e-3)
    log = train_stored(model, trie, groups, config, progress=lambda count, _: seen.append(count))
    change = item_log_probs(model, trie, groups) - before
    assert change[:, 3].mean() > 0.1
    assert (change[:, 3] > change[:, :3].mean(axis=1)).all()
    assert len(log) == 20
    assert sum(seen) == 80
    assert log[0]["ratio"] == pytest.approx(1, abs=1e-4)
    assert log[0]["kl_reference"] == pytest.approx(0, abs=1e-6)
    assert log[-1]["kl_reference"] > 1e-4
    assert all(np.isfinite(list(step.values())).all() for step in log)


def test_training_is_deterministic() -> None:
    states = []
    for _ in range(2):
        model, trie, groups = rolled_out()
        train_stored(model, trie, groups, policy(epochs=2, batch_size=3, learning_rate=1e-3, seed=5))
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_groups_without_advantage_leave_the_model_as_it_was() -> None:
    model, trie, groups = rolled_out()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    silent = StoredGroups(groups.histories, groups.items, groups.log_probs, np.zeros_like(groups.advantages))
    assert train_stored(model, trie, silent, policy()) == []
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def log_probabilities() -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.float64, (2, 3, 2), elements=st.floats(-5, 0))


def steps_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, ...]]:
    """Old and reference log-probabilities and advantages that the loss will be given."""
    seen: list[tuple[torch.Tensor, ...]] = []

    def watched(new: torch.Tensor, *given: torch.Tensor, **options: Any) -> PolicyLoss:
        seen.append(given)
        return clipped_policy_loss(new, *given, **options)

    monkeypatch.setitem(LOSSES, "clip", watched)
    return seen


@pytest.mark.parametrize("batch_size", [3, 8])
def test_ratios_and_penalty_are_to_the_start_whoever_rolled_out(
    batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A beam by another policy: what the start gives to its candidates counts, in all steps of all epochs."""
    model, trie, groups = rolled_out(16)
    start = copy.deepcopy(model)
    other = replace(groups, log_probs=groups.log_probs - np.random.default_rng(0).random(groups.log_probs.shape))
    seen = steps_of(monkeypatch)
    log = train_stored(model, trie, other, policy(epochs=2, batch_size=batch_size, learning_rate=1e-2))
    assert log[0]["ratio"] == pytest.approx(1, abs=1e-4)
    histories, items = torch.from_numpy(groups.histories), torch.from_numpy(groups.items)
    with torch.no_grad():
        expected = score_items(start, trie, histories, items).log_probs.flatten(1)
    for epoch in (seen[: len(seen) // 2], seen[len(seen) // 2 :]):
        for which in (0, 1):
            rows = torch.cat([step[which] for step in epoch]).flatten(1)
            torch.testing.assert_close(rows[rows[:, 0].argsort()], expected[expected[:, 0].argsort()])


@pytest.mark.parametrize("sampled", [False, True])
def test_a_start_that_rolled_out_itself_has_the_gradient_of_its_stored_probabilities(sampled: bool) -> None:
    model, trie, groups = rolled_out(16)
    histories, items = torch.from_numpy(groups.histories), torch.from_numpy(groups.items)
    stored, advantages = torch.from_numpy(groups.log_probs), torch.from_numpy(groups.advantages).float()
    plain = copy.deepcopy(model)
    new = score_items(plain, trie, histories, items).log_probs
    found = clipped_policy_loss(new, stored, stored, advantages, clip=0.2, beta=1e-3)
    found.loss.backward()
    norm = torch.stack([p.grad.norm() for p in plain.parameters() if p.grad is not None]).norm()
    log = train_stored(model, trie, replace(groups, sampled=sampled), policy(batch_size=8))
    assert log[0]["loss"] == pytest.approx(found.loss.item(), abs=1e-6)
    assert log[0]["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)


@pytest.mark.parametrize("per_code", [False, True])
def test_draws_of_another_policy_are_weighed_and_candidates_of_its_beam_are_not(
    per_code: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, trie, groups = rolled_out()
    if per_code:
        groups = replace(groups, advantages=np.repeat(groups.advantages[..., None], 2, axis=2))
    shift = np.log(np.array([0.5, 1.0, 1.5, 4.0]))
    other = replace(groups, log_probs=groups.log_probs - shift[:, None] / 2)
    seen = steps_of(monkeypatch)
    for sampled, weights in ((False, [1, 1, 1, 1]), (True, [0.5, 1, 1.5, 2])):
        train_stored(
            copy.deepcopy(model), trie, replace(other, sampled=sampled), policy(batch_size=8, weight_limit=2.0)
        )
        expected = groups.advantages * np.array(weights).reshape((4, 1) if per_code else (4,))
        used = seen[-1][2].numpy()
        np.testing.assert_allclose(np.sort(used, axis=0), np.sort(expected, axis=0), rtol=1e-4)


@given(log_probabilities(), log_probabilities())
def test_truncated_weights_are_ratios_of_whole_candidates(start: np.ndarray, behaviour: np.ndarray) -> None:
    found = truncated_weights(torch.from_numpy(start), torch.from_numpy(behaviour), 2.0).numpy()
    ratio = np.exp(start).prod(axis=2) / np.exp(behaviour).prod(axis=2)
    np.testing.assert_allclose(found, np.minimum(ratio, 2))


def test_means_of_the_last_epoch_leave_earlier_ones_out() -> None:
    steps = [{"loss": value, "entropy": 2 * value} for value in (9.0, 8.0, 7.0, 1.0, 2.0, 6.0)]
    assert means_of_last_epoch(steps, epochs=2) == {"loss": 3.0, "entropy": 6.0}
    assert means_of_last_epoch(steps[:2], epochs=1) == {"loss": 8.5, "entropy": 17.0}
    assert means_of_last_epoch([], epochs=3) == {}
    idle = {"business_reward": 0.0}
    assert means_of_last_epoch([{**idle, "loss": 4.0}, {"business_reward": 2.0}], epochs=1) == {
        "business_reward": 1.0,
        "loss": 4.0,
    }, "a step that learns nothing has no loss"


def test_a_strong_penalty_holds_the_policy_at_the_reference() -> None:
    changes = []
    for beta in (0.0, 100.0):
        model, trie, groups = rolled_out()
        log = train_stored(model, trie, groups, policy(epochs=5, batch_size=4, learning_rate=1e-3, beta=beta))
        changes.append(log[-1]["kl_reference"])
    assert changes[1] < changes[0] / 2


@given(
    log_probabilities(),
    log_probabilities(),
    log_probabilities(),
    hnp.arrays(np.float64, (2, 3), elements=st.floats(-2, 2)),
)
def test_loss_agrees_with_the_formula(
    new: np.ndarray, old: np.ndarray, reference: np.ndarray, advantages: np.ndarray
) -> None:
    result = clipped_policy_loss(*(torch.from_numpy(x) for x in (new, old, reference, advantages)), clip=0.2, beta=0.5)
    terms = []
    for index in np.ndindex(new.shape):
        ratio = np.exp(new[index] - old[index])
        advantage = advantages[index[:2]]
        surrogate = min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
        gap = reference[index] - new[index]
        terms.append(0.5 * (np.exp(gap) - gap - 1) - surrogate)
    assert result.loss.item() == pytest.approx(np.mean(terms), rel=1e-9, abs=1e-9)
    assert result.kl_reference >= 0
    shared = clipped_policy_loss(
        *(torch.from_numpy(x) for x in (new, old, reference)),
        torch.from_numpy(np.repeat(advantages[..., None], 2, 2)),
        clip=0.2,
        beta=0.5,
    )
    assert shared.loss.item() == pytest.approx(result.loss.item(), abs=1e-12)


def test_settings_name_the_losses_and_no_others() -> None:
    assert set(get_args(PolicySettings.model_fields["loss"].annotation)) == set(LOSSES)


def test_a_clipped_token_has_no_gradient() -> None:
    new = torch.tensor([[[0.5], [0.0]]], requires_grad=True)
    old = torch.zeros(1, 2, 1)
    result = clipped_policy_loss(new, old, old, torch.ones(1, 2), clip=0.2, beta=0.0)
    result.loss.backward()
    assert new.grad.flatten().tolist() == [0.0, -0.5]
    assert result.clip_fraction.item() == 0.5


def on_policy(**changes: Any) -> RolloutConfig:
    values = {"group_size": 4, "method": "beam", "updates": 1, "objective": "a2po"}
    return RolloutConfig(**{**values, "epsilon": 1e-8, **changes})


def wants_item_five(rows: np.ndarray, items: np.ndarray) -> np.ndarray:
    return (items == 5).astype(float)


@pytest.mark.parametrize("method", ["beam", "sampling"])
def test_fresh_rollouts_raise_what_is_rewarded(method: str) -> None:
    model, trie, groups = rolled_out()
    wanted = StoredGroups(groups.histories, np.full((8, 1), 5), np.zeros((8, 1, 2)), np.ones((8, 1)))
    before = item_log_probs(model, trie, wanted)
    config = policy(epochs=30, batch_size=8, learning_rate=3e-3)
    rollout = on_policy(method=method, objective="business", group_size=12)
    log = train_on_policy(model, trie, Prompts(groups.histories, wants_item_five), config, rollout)
    assert (item_log_probs(model, trie, wanted) - before).mean() > 0.3
    assert len(log) == 30
    first = next(step for step in log if "ratio" in step)
    assert first["ratio"] == pytest.approx(1, abs=1e-4)
    assert {step["covered_groups"] for step in log} == {0}


def test_a_first_step_on_fresh_rollouts_equals_one_on_stored_ones() -> None:
    fresh, trie, groups = rolled_out()
    stored = copy.deepcopy(fresh)
    reward, judge = np.random.default_rng(1).normal(size=(2, trie.items))
    config = policy(batch_size=8, learning_rate=1e-3)
    advantages = fused("a2po", reward[groups.items], judge[groups.items]).advantage
    log = train_stored(stored, trie, StoredGroups(groups.histories, groups.items, groups.log_probs, advantages), config)
    other = train_on_policy(
        fresh,
        trie,
        Prompts(groups.histories, lambda _, items: reward[items], lambda _, items: judge[items]),
        config,
        on_policy(),
    )
    assert other[0]["loss"] == pytest.approx(log[0]["loss"], abs=1e-5)
    for name, weights in stored.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[name], weights, atol=1e-5, rtol=1e-4)


def test_groups_without_business_variance_or_outside_the_ratio_are_not_judged() -> None:
    model, trie, groups = rolled_out()
    asked: list[int] = []

    def judge(rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        asked.extend(rows.tolist())
        return np.random.default_rng(0).normal(size=items.shape)

    def business(rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        return items * (rows[:, None] < 4)

    prompts, config = Prompts(groups.histories, business, judge), policy(batch_size=8)
    log = train_on_policy(model, trie, prompts, config, on_policy())
    assert sorted(asked) == [0, 1, 2, 3]
    assert log[0]["covered_groups"] == 4
    asked.clear()
    few = replace(prompts, sampled=np.arange(8) % 2 == 0)
    train_on_policy(model, trie, few, config, on_policy())
    assert sorted(asked) == [0, 2]
    asked.clear()
    train_on_policy(model, trie, prompts, config, on_policy(objective="adv_sum"))
    assert sorted(asked) == list(range(8))
    asked.clear()
    train_on_policy(model, trie, prompts, config, on_policy(objective="business"))
    assert not asked


def test_fresh_groups_without_signal_weigh_nothing_as_stored_ones_do() -> None:
    """Half of the prompts reward all candidates alike: they used to be in mean and penalty of fresh groups alone."""
    fresh, trie, groups = rolled_out()
    stored = copy.deepcopy(fresh)

    def half(rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        return np.where(rows[:, None] % 2, items, 0).astype(float)

    config = policy(batch_size=8, learning_rate=1e-2, beta=0.5)
    log = train_on_policy(
        fresh, trie, Prompts(groups.histories, half), config, on_policy(objective="business", updates=3)
    )
    advantages = standardise(half(np.arange(8), groups.items))
    assert (log[0]["groups_with_advantage"], advantages.any(axis=1).sum()) == (4, 4)
    again = policy(batch_size=8, learning_rate=1e-2, beta=0.5, epochs=3)
    other = train_stored(stored, trie, replace(groups, advantages=advantages), again)
    for step in ("kl_reference", "loss", "clip_fraction"):
        assert [one[step] for one in log] == pytest.approx([one[step] for one in other], abs=1e-6)
    for name, value in fresh.state_dict().items():
        torch.testing.assert_close(value, stored.state_dict()[name], atol=1e-6, rtol=1e-5)


def test_fresh_groups_all_without_signal_leave_the_model_as_it_was() -> None:
    model, trie, groups = rolled_out()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    alike = Prompts(groups.histories, lambda rows, items: np.zeros(items.shape))
    log = train_on_policy(model, trie, alike, policy(learning_rate=1e-2, beta=0.5), on_policy(objective="business"))
    assert len(log) == 2
    assert not any("loss" in step for step in log)
    assert {step["groups_with_advantage"] for step in log} == {0}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_group_with_an_unscored_candidate_keeps_its_business_advantage() -> None:
    model, trie, groups = rolled_out()

    def judge(rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        scores = items.astype(float)
        scores[rows == 2, 1] = np.nan
        return scores

    def business(rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        return items.astype(float)

    log = train_on_policy(model, trie, Prompts(groups.histories, business, judge), policy(batch_size=8), on_policy())
    assert log[0]["covered_groups"] == 7
    assert log[0]["agreement_rate"] == 1
    assert np.isfinite(log[0]["loss"])


def test_clipping_bites_from_the_second_update_on() -> None:
    model, trie, groups = rolled_out()
    log = train_on_policy(
        model,
        trie,
        Prompts(groups.histories, wants_item_five),
        policy(batch_size=8, learning_rate=3e-2, clip=0.05),
        on_policy(objective="business", updates=3, group_size=12),
    )
    assert [step["clip_fraction"] > 0 for step in log] == [False, True, True]
