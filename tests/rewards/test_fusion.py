"""Reward fusion against the paper's properties and a plain float64 reference; the ranking reward."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sgrec_core.rewards import fusion
from sgrec_core.rewards.ranking import ranking_reward

shapes = st.tuples(st.integers(1, 5), st.integers(2, 8))


@st.composite
def reward_pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Business and semantic rewards, with ties and constant groups more often than chance would make them."""
    shape = draw(shapes)
    levels = st.one_of(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), st.floats(-1000, 1000, allow_subnormal=False))
    return draw(hnp.arrays(np.float64, shape, elements=levels)), draw(hnp.arrays(np.float64, shape, elements=levels))


def reference(business: np.ndarray, semantic: np.ndarray, eps: float = 1e-8) -> list[list[float]]:
    """The paper's three lines, one candidate at a time."""

    def z(values: list[float]) -> list[float]:
        mean = math.fsum(values) / len(values)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        return [(value - mean) / deviation if deviation > 1e-8 else 0.0 for value in values]

    groups = []
    for raw_business, raw_semantic in zip(business.tolist(), semantic.tolist(), strict=True):
        group = []
        for biz, sem in zip(z(raw_business), z(raw_semantic), strict=True):
            agree = (biz > 0) - (biz < 0) == (sem > 0) - (sem < 0)
            gate = min(abs(biz), abs(sem)) / (max(abs(biz), abs(sem)) + eps) if agree else 0.0
            group.append(biz + gate * sem)
        groups.append(group)
    return groups


@given(reward_pairs())
def test_a2po_agrees_with_the_reference(pair: tuple[np.ndarray, np.ndarray]) -> None:
    business, semantic = pair
    fused = fusion.a2po(business, semantic)
    # Candidates at the very mean of their group have a sign that hangs on rounding.
    decided = (np.abs(fused.business_advantage) > 1e-9) & (np.abs(fused.semantic_advantage) > 1e-9)
    expected = np.array(reference(business, semantic))
    np.testing.assert_allclose(fused.advantage[decided], expected[decided], rtol=1e-9, atol=1e-9)


@given(reward_pairs())
def test_a2po_keeps_the_business_sign_and_stays_within_twice_its_size(pair: tuple[np.ndarray, np.ndarray]) -> None:
    fused = fusion.a2po(*pair)
    assert (np.sign(fused.advantage) == np.sign(fused.business_advantage)).all()
    size, base = np.abs(fused.advantage), np.abs(fused.business_advantage)
    assert (size >= base).all()
    assert (size <= 2 * base * (1 + 1e-12)).all()
    assert ((fused.gate >= 0) & (fused.gate <= 1)).all()
    assert (fused.gate[np.sign(fused.business_advantage) != np.sign(fused.semantic_advantage)] == 0).all()


@given(reward_pairs(), st.integers(0, 1000))
def test_centred_a2po_sums_to_zero_and_differs_by_one_number_a_group(
    pair: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    business, semantic = pair
    judged = np.random.default_rng(seed).random(len(business)) < 0.5
    gated, centred = fusion.a2po(business, semantic, judged), fusion.a2po_centred(business, semantic, judged)
    np.testing.assert_allclose(centred.advantage.sum(axis=1), 0, atol=1e-9)
    taken_off = gated.advantage - centred.advantage
    np.testing.assert_allclose(taken_off, np.broadcast_to(taken_off[:, :1], taken_off.shape), atol=1e-9)
    np.testing.assert_array_equal(centred.gate, gated.gate)
    alone = fusion.business(business)
    np.testing.assert_allclose(centred.advantage[~judged], alone.advantage[~judged], atol=1e-9)


@given(reward_pairs(), st.floats(-1e6, 1e6))
def test_a_group_without_business_variance_gets_nothing(pair: tuple[np.ndarray, np.ndarray], constant: float) -> None:
    business, semantic = pair
    fused = fusion.a2po(np.full_like(business, constant), semantic)
    assert (fused.business_advantage == 0).all()
    assert (fused.advantage == 0).all()


@given(reward_pairs(), st.integers(0, 1000))
def test_groups_not_judged_keep_their_business_advantage(pair: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    business, semantic = pair
    judged = np.random.default_rng(seed).random(len(business)) < 0.5
    semantic = np.where(judged[:, None], semantic, np.nan)
    fused = fusion.a2po(business, semantic, judged)
    alone = fusion.business(business)
    assert (fused.advantage[~judged] == alone.advantage[~judged]).all()
    assert (fused.gate[~judged] == 0).all()
    assert (fused.semantic_advantage[~judged] == 0).all()
    whole = fusion.a2po(business[judged], semantic[judged])
    np.testing.assert_array_equal(fused.advantage[judged], whole.advantage)


@given(reward_pairs())
def test_standardised_groups_have_mean_zero_and_population_deviation_one_or_zero(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    rewards = pair[0]
    advantages = fusion.standardise(rewards)
    np.testing.assert_allclose(advantages.mean(axis=1), 0, atol=1e-6)
    deviation = advantages.std(axis=1)
    varied = rewards.std(axis=1) > 2e-8
    np.testing.assert_allclose(deviation[varied], 1, rtol=1e-6)
    assert (deviation[rewards.std(axis=1) < 5e-9] == 0).all()


def test_deviation_at_the_limit() -> None:
    assert fusion.standardise(np.array([[0.0, 2e-8]])).tolist() == [[0.0, 0.0]]
    assert fusion.standardise(np.array([[0.0, 2.2e-8]])).tolist() == [[-1.0, 1.0]]
    assert fusion.standardise(np.full((1, 3), 1e12 + 0.1)).tolist() == [[0.0, 0.0, 0.0]]


@given(reward_pairs())
def test_numpy_and_torch_agree_and_come_back_as_they_went_in(pair: tuple[np.ndarray, np.ndarray]) -> None:
    from_numpy = fusion.a2po(*pair)
    from_torch = fusion.a2po(*(torch.from_numpy(rewards) for rewards in pair))
    assert isinstance(from_numpy.advantage, np.ndarray)
    assert isinstance(from_torch.advantage, torch.Tensor)
    assert from_torch.advantage.dtype == torch.float64
    np.testing.assert_array_equal(from_numpy.advantage, from_torch.advantage.numpy())
    single = fusion.a2po(*(torch.from_numpy(rewards).float() for rewards in pair))
    assert single.advantage.dtype == torch.float32


@given(reward_pairs())
def test_ablations_are_what_their_names_say(pair: tuple[np.ndarray, np.ndarray]) -> None:
    business, semantic = pair
    biz, sem = fusion.standardise(business), fusion.standardise(semantic)
    np.testing.assert_array_equal(fusion.business(business).advantage, biz)
    np.testing.assert_array_equal(fusion.adv_sum(business, semantic).advantage, biz + sem)
    np.testing.assert_array_equal(
        fusion.reward_sum(business, semantic).advantage, fusion.standardise(business + semantic)
    )


def test_missing_rewards_of_a_judged_group_are_named() -> None:
    semantic = np.array([[0.0, 1.0], [0.5, np.nan]])
    for objective in (fusion.business, lambda rewards: fusion.a2po(rewards, np.ones((2, 2)))):
        with pytest.raises(ValueError, match="business reward of candidate 1 in group 1 is nan"):
            objective(semantic)
    with pytest.raises(ValueError, match="candidate 1 in judged group 1 is nan"):
        fusion.a2po(np.ones((2, 2)), semantic)
    with pytest.raises(ValueError, match=r"\[groups, candidates\], not \(2,\)"):
        fusion.business(np.ones(2))


def test_random_scores_on_a_one_hit_group_agree_half_the_time() -> None:
    """The noise floor in the papers' digest: 50% agreement, mean lambda .18, 23% more |A|."""
    draws = np.random.default_rng(0)
    items = np.argsort(draws.random((20_000, 16)), axis=1)
    fused = fusion.a2po(ranking_reward(items, np.zeros(20_000, dtype=int)), draws.normal(size=(20_000, 16)))
    assert (fused.gate > 0).mean() == pytest.approx(0.5, abs=0.01)
    assert fused.gate.mean() == pytest.approx(0.18, abs=0.01)
    growth = np.abs(fused.advantage).mean() / np.abs(fused.business_advantage).mean()
    assert growth == pytest.approx(1.23, abs=0.01)


def test_ranking_reward_by_hand() -> None:
    discount = [1.0, 1 / math.log2(3), 0.5]
    rewards = ranking_reward(np.array([[4, 7, 9], [1, 2, 3]]), np.array([7, 9]))
    np.testing.assert_allclose(rewards[0], [-discount[0] / sum(discount), 1.0, -discount[2] / sum(discount)])
    assert rewards[1].tolist() == [0, 0, 0]


@given(st.integers(2, 20), st.integers(0, 19))
def test_higher_ranked_misses_cost_more(size: int, hit: int) -> None:
    rewards = ranking_reward(np.arange(size)[None], np.array([min(hit, size - 1)]))[0]
    misses = np.delete(rewards, min(hit, size - 1))
    assert (misses < 0).all()
    assert (np.diff(misses) > 0).all()
    assert rewards[min(hit, size - 1)] == 1


@pytest.mark.parametrize("objective", fusion.OBJECTIVES)
def test_fuse_is_each_objective_where_judged(objective: str) -> None:
    draws = np.random.default_rng(3)
    biz, sem = draws.normal(size=(2, 6, 8))
    judged = np.array([True, False, True, True, False, True])
    fused = fusion.fuse(objective, biz, np.where(judged[:, None], sem, np.nan), judged)
    alone = {
        "business": fusion.business(biz[judged]),
        "a2po": fusion.a2po(biz[judged], sem[judged]),
        "a2po_centred": fusion.a2po_centred(biz[judged], sem[judged]),
        "reward_sum": fusion.reward_sum(biz[judged], sem[judged]),
        "adv_sum": fusion.adv_sum(biz[judged], sem[judged]),
    }[objective]
    np.testing.assert_allclose(fused.advantage[judged], alone.advantage, atol=1e-12)
    expected = fusion.standardise(biz[~judged]) if objective not in fusion.UNGATED else np.zeros((2, 8))
    np.testing.assert_allclose(fused.advantage[~judged], expected, atol=1e-12)
    assert (fused.gate[~judged] == 0).all()
    np.testing.assert_allclose(fused.business_advantage, fusion.standardise(biz), atol=1e-12)


def test_an_item_that_comes_twice_gets_one_ranking_reward() -> None:
    rewards = ranking_reward(np.array([[7, 3, 7, 5]]), np.array([5]))[0]
    assert rewards[0] == rewards[2] < rewards[1] < 0 < rewards[3]


def test_fuse_names_the_valid_objectives() -> None:
    with pytest.raises(
        ValueError, match="unknown objective 'ppo'; valid are business, reward_sum, adv_sum, a2po, a2po_centred"
    ):
        fusion.fuse("ppo", np.zeros((1, 2)), np.zeros((1, 2)), np.array([True]))
