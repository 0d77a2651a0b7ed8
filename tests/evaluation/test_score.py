"""The score: relative differences of next items and values by weight, in units of NDCG@10."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgrec_core.evaluation.score import OfUsers, Weights, score_differences

USERS = np.array([f"u{number:03d}" for number in range(200)])
ALL = Weights(ndcg=1, ecpm=0.5, gmv=0.25, dislikes=0.25)


def of_users(seed: int, **means: float) -> OfUsers:
    draws = np.random.default_rng(seed)
    return OfUsers(USERS, {name: mean * draws.uniform(0.5, 1.5, len(USERS)) for name, mean in means.items()})


@given(st.integers(0, 1000), st.floats(0.1, 2), st.floats(0, 2), st.floats(0, 2), st.floats(0, 2))
def test_the_mean_is_the_weighted_relative_difference(
    seed: int, ndcg: float, ecpm: float, gmv: float, dislikes: float
) -> None:
    ours, theirs = (of_users(seed + part, ndcg=0.08, ecpm=200, gmv=900, dislikes=0.01) for part in (0, 5000))
    weights = Weights(ndcg=ndcg, ecpm=ecpm, gmv=gmv, dislikes=dislikes)
    _, found = score_differences(ours, theirs, weights)
    relative = {name: ours.figures[name].mean() / theirs.figures[name].mean() - 1 for name in ours.figures}
    relative["dislikes"] *= -1
    wanted = sum(vars(weights)[name] * relative[name] for name in relative) / sum(vars(weights).values())
    np.testing.assert_allclose(found.mean(), wanted * theirs.figures["ndcg"].mean(), atol=1e-12)
    np.testing.assert_allclose(score_differences(theirs, theirs, weights)[1], 0)


def test_without_values_it_is_the_difference_of_ndcg_user_by_user() -> None:
    ours, theirs = of_users(1, ndcg=0.08), of_users(2, ndcg=0.08)
    np.testing.assert_allclose(score_differences(ours, theirs, ALL)[1], ours.figures["ndcg"] - theirs.figures["ndcg"])


def test_a_value_that_only_one_has_or_that_may_be_zero_is_left_out() -> None:
    ours, theirs = of_users(1, ndcg=0.08, ecpm=200), of_users(2, ndcg=0.08)
    plain = ours.figures["ndcg"] - theirs.figures["ndcg"]
    np.testing.assert_allclose(score_differences(ours, theirs, ALL)[1], plain)
    noise = np.random.default_rng(0).normal(0, 1, len(USERS))
    lost = OfUsers(USERS, {**theirs.figures, "ecpm": noise})
    np.testing.assert_allclose(score_differences(ours, lost, ALL)[1], plain)


def test_users_without_decisions_neither_add_nor_take() -> None:
    ours, theirs = of_users(1, ndcg=0.08, ecpm=200), of_users(2, ndcg=0.08, ecpm=220)
    for one in (ours, theirs):
        one.figures["ndcg"][:50] = np.nan
    _, found = score_differences(ours, theirs, Weights(ndcg=1, ecpm=0, gmv=0, dislikes=0))
    np.testing.assert_allclose(found.mean(), np.nanmean(ours.figures["ndcg"]) - np.nanmean(theirs.figures["ndcg"]))
    assert not found[:50].any()


def test_users_without_requests_neither_add_to_a_value_nor_take_from_it() -> None:
    ours, theirs = of_users(1, ndcg=0.08, ecpm=200), of_users(2, ndcg=0.08, ecpm=220)
    for one in (ours, theirs):
        one.figures["ecpm"][:50] = np.nan
    _, found = score_differences(ours, theirs, Weights(ndcg=0, ecpm=1, gmv=0, dislikes=0))
    relative = np.nanmean(ours.figures["ecpm"]) / np.nanmean(theirs.figures["ecpm"]) - 1
    np.testing.assert_allclose(found.mean(), relative * theirs.figures["ndcg"].mean())


def test_other_users_are_refused() -> None:
    ours, theirs = of_users(1, ndcg=0.08), of_users(2, ndcg=0.08)
    with pytest.raises(ValueError, match="200 users against those of 199"):
        score_differences(ours, OfUsers(USERS[1:], {"ndcg": theirs.figures["ndcg"][1:]}), ALL)
