"""Reward fusion against the paper's properties and a plain float64 reference; the ranking reward."""

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rewarded_groups import TRIE, fused, groups_of

from sgrec_core.rewards.advantages import METHODS, Groups, standardise
from sgrec_core.rewards.advantages.a2po import a2po
from sgrec_core.rewards.ranking import ranking_reward
from sgrec_core.rewards.semantic import queue_places, worth_judging
from sgrec_core.settings import FusionSettings

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
    found = fused("a2po", business, semantic)
    # Candidates at the very mean of their group have a sign that hangs on rounding.
    decided = (np.abs(found.business_advantage) > 1e-9) & (np.abs(found.semantic_advantage) > 1e-9)
    expected = np.array(reference(business, semantic))
    np.testing.assert_allclose(found.advantage[decided], expected[decided], rtol=1e-9, atol=1e-9)


@given(reward_pairs())
def test_a2po_keeps_the_business_sign_and_stays_within_twice_its_size(pair: tuple[np.ndarray, np.ndarray]) -> None:
    found = fused("a2po", *pair)
    assert (np.sign(found.advantage) == np.sign(found.business_advantage)).all()
    size, base = np.abs(found.advantage), np.abs(found.business_advantage)
    assert (size >= base).all()
    assert (size <= 2 * base * (1 + 1e-12)).all()
    assert ((found.gate >= 0) & (found.gate <= 1)).all()
    assert (found.gate[np.sign(found.business_advantage) != np.sign(found.semantic_advantage)] == 0).all()


@given(reward_pairs(), st.integers(0, 1000))
def test_centred_a2po_sums_to_zero_and_differs_by_one_number_a_group(
    pair: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    business, semantic = pair
    judged = np.random.default_rng(seed).random(len(business)) < 0.5
    gated, centred = fused("a2po", business, semantic, judged), fused("a2po_centred", business, semantic, judged)
    np.testing.assert_allclose(centred.advantage.sum(axis=1), 0, atol=1e-9)
    taken_off = gated.advantage - centred.advantage
    np.testing.assert_allclose(taken_off, np.broadcast_to(taken_off[:, :1], taken_off.shape), atol=1e-9)
    np.testing.assert_array_equal(centred.gate, gated.gate)
    alone = fused("business", business)
    np.testing.assert_allclose(centred.advantage[~judged], alone.advantage[~judged], atol=1e-9)


@given(reward_pairs(), st.floats(-1e6, 1e6))
def test_a_group_without_business_variance_gets_nothing(pair: tuple[np.ndarray, np.ndarray], constant: float) -> None:
    business, semantic = pair
    found = fused("a2po", np.full_like(business, constant), semantic)
    assert (found.business_advantage == 0).all()
    assert (found.advantage == 0).all()


@given(reward_pairs(), st.integers(0, 1000))
def test_groups_not_judged_keep_their_business_advantage(pair: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    business, semantic = pair
    judged = np.random.default_rng(seed).random(len(business)) < 0.5
    semantic = np.where(judged[:, None], semantic, np.nan)
    found = fused("a2po", business, semantic, judged)
    alone = fused("business", business)
    assert (found.advantage[~judged] == alone.advantage[~judged]).all()
    assert (found.gate[~judged] == 0).all()
    assert (found.semantic_advantage[~judged] == 0).all()
    whole = fused("a2po", business[judged], semantic[judged])
    np.testing.assert_array_equal(found.advantage[judged], whole.advantage)


@given(reward_pairs())
def test_standardised_groups_have_mean_zero_and_population_deviation_one_or_zero(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    rewards = pair[0]
    advantages = standardise(rewards)
    np.testing.assert_allclose(advantages.mean(axis=1), 0, atol=1e-6)
    deviation = advantages.std(axis=1)
    varied = rewards.std(axis=1) > 2e-8
    np.testing.assert_allclose(deviation[varied], 1, rtol=1e-6)
    assert (deviation[rewards.std(axis=1) < 5e-9] == 0).all()


def test_deviation_at_the_limit() -> None:
    assert standardise(np.array([[0.0, 2e-8]])).tolist() == [[0.0, 0.0]]
    assert standardise(np.array([[0.0, 2.2e-8]])).tolist() == [[-1.0, 1.0]]
    assert standardise(np.full((1, 3), 1e12 + 0.1)).tolist() == [[0.0, 0.0, 0.0]]


def test_the_rounding_of_a_judge_is_no_preference() -> None:
    """Scores of .7312 that differ by one step of float32: the gate used to be open by .079 on average."""
    draws = np.random.default_rng(0)
    step = np.spacing(np.float32(0.7312))
    semantic = 0.7312 + step * draws.integers(-1, 2, (50, 16))
    business = draws.random((50, 16))
    items = np.zeros((50, 16), dtype=int)
    for resolution, expected in ((1e-8, False), (1e-5, True)):
        groups = Groups.of(TRIE, items, business, semantic, resolution=resolution)
        assert (a2po(groups, 1e-8).gate == 0).all() == expected
        assert (a2po(groups, 1e-8).advantage == groups.business_advantage).all() == expected


@given(reward_pairs())
def test_ablations_are_what_their_names_say(pair: tuple[np.ndarray, np.ndarray]) -> None:
    business, semantic = pair
    biz, sem = standardise(business), standardise(semantic)
    np.testing.assert_array_equal(fused("business", business).advantage, biz)
    np.testing.assert_array_equal(fused("adv_sum", business, semantic).advantage, biz + sem)
    np.testing.assert_array_equal(fused("reward_sum", business, semantic).advantage, standardise(business + semantic))


def test_missing_rewards_of_a_judged_group_are_named() -> None:
    semantic = np.array([[0.0, 1.0], [0.5, np.nan]])
    for other in (None, np.ones((2, 2))):
        with pytest.raises(ValueError, match="business reward of candidate 1 in group 1 is nan"):
            groups_of(semantic, other)
    with pytest.raises(ValueError, match="candidate 1 in judged group 1 is nan"):
        groups_of(np.ones((2, 2)), semantic)
    with pytest.raises(ValueError, match=r"\[groups, candidates\], not \(2,\)"):
        groups_of(np.ones(2))


def test_random_scores_on_a_one_hit_group_agree_half_the_time() -> None:
    """The noise floor in the papers' digest: 50% agreement, mean lambda .18, 23% more |A|."""
    draws = np.random.default_rng(0)
    items = np.argsort(draws.random((20_000, 16)), axis=1)
    found = fused("a2po", ranking_reward(items, np.zeros(20_000, dtype=int)), draws.normal(size=(20_000, 16)))
    assert (found.gate > 0).mean() == pytest.approx(0.5, abs=0.01)
    assert found.gate.mean() == pytest.approx(0.18, abs=0.01)
    growth = np.abs(found.advantage).mean() / np.abs(found.business_advantage).mean()
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


@pytest.mark.parametrize("objective", METHODS)
def test_fuse_is_each_objective_where_judged(objective: str) -> None:
    draws = np.random.default_rng(3)
    biz, sem = draws.normal(size=(2, 6, 8))
    judged = np.array([True, False, True, True, False, True])
    found = fused(objective, biz, np.where(judged[:, None], sem, np.nan), judged)
    alone = fused(objective, biz[judged], sem[judged])
    np.testing.assert_allclose(found.advantage[judged], alone.advantage, atol=1e-12)
    expected = standardise(biz[~judged]) if not METHODS[objective].needs_every_group else np.zeros((2, 8))
    np.testing.assert_allclose(found.advantage[~judged], expected, atol=1e-12)
    assert (found.gate[~judged] == 0).all()
    np.testing.assert_allclose(found.business_advantage, standardise(biz), atol=1e-12)


def test_an_item_that_comes_twice_gets_one_ranking_reward() -> None:
    rewards = ranking_reward(np.array([[7, 3, 7, 5]]), np.array([5]))[0]
    assert rewards[0] == rewards[2] < rewards[1] < 0 < rewards[3]


def test_fuse_names_the_valid_objectives() -> None:
    with pytest.raises(
        ValueError, match="unknown objective 'ppo'; valid are business, reward_sum, adv_sum, a2po, a2po_centred"
    ):
        fused("ppo", np.zeros((1, 2)), np.zeros((1, 2)))


def test_settings_name_the_methods_and_no_others() -> None:
    field = FusionSettings.model_fields["objective"]
    assert set(get_args(field.annotation)) == set(METHODS)


@pytest.mark.parametrize("objective", METHODS)
def test_what_a_method_says_of_itself_is_what_it_does(objective: str) -> None:
    method, draws = METHODS[objective], np.random.default_rng(5)
    flat, semantic = np.full((4, 8), 0.3), draws.normal(size=(2, 4, 8))
    assert fused(objective, flat, semantic[0]).advantage.any() == method.learns_without_variance
    varied, nothing = draws.normal(size=(4, 8)), np.zeros(4, dtype=bool)
    assert fused(objective, varied, semantic[0], nothing).advantage.any() != method.needs_every_group
    differs = fused(objective, varied, semantic[0]).advantage != fused(objective, varied, semantic[1]).advantage
    assert differs.any() == method.reads_semantic


def test_groups_know_codes_path_and_which_codes_had_no_rival() -> None:
    groups = groups_of(np.zeros((1, 6)))
    assert groups.codes[0].tolist() == [[0, 0], [0, 1], [1, 0], [2, 0], [2, 1], [2, 2]]
    assert groups.path[0].tolist() == [[0, 1], [0, 1], [0, 2], [0, 3], [0, 3], [0, 3]]
    assert groups.forced[0].tolist() == [[False, item == 2] for item in range(6)]


def test_only_groups_that_a_semantic_reward_can_move_are_worth_judging() -> None:
    business = np.array([[1.0, 0.0], [0.4, 0.4]])
    assert worth_judging(METHODS["a2po"], business).tolist() == [True, False]
    assert worth_judging(METHODS["adv_sum"], business).tolist() == [True, True]


def test_the_sampled_share_fills_the_queue_and_is_the_same_again() -> None:
    names = [f"d{number}" for number in range(4000)]
    places = queue_places(METHODS["a2po"], names, ratio=0.25, seed=1)
    sampled = places[np.isfinite(places)]
    assert len(sampled) == pytest.approx(1000, abs=100)
    assert 0 <= sampled.min() < 0.01 < 0.99 < sampled.max() < 1
    np.testing.assert_array_equal(queue_places(METHODS["a2po"], names[::-1], ratio=0.25, seed=1)[::-1], places)
    wider = queue_places(METHODS["a2po"], names, ratio=0.5, seed=1)
    assert np.isfinite(wider[np.isfinite(places)]).all()
    assert np.isfinite(queue_places(METHODS["reward_sum"], names, ratio=0.25, seed=1)).all()
