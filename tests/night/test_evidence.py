"""Evidence over nights as the gate reads it: a recipe that turns is noticed within days."""

import numpy as np

from sgrec_core.night.evaluation import evidence_by_night

USERS = np.array([f"u{number:03d}" for number in range(500)])


def nights(*means: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """A night for each mean: 500 users whose scores scatter by .1."""
    return [(USERS, np.random.default_rng(at).normal(mean, 0.1, len(USERS))) for at, mean in enumerate(means)]


def test_a_recipe_that_was_better_and_is_worse_is_stopped_within_a_week() -> None:
    found = evidence_by_night(nights(*[0.03] * 20, *[-0.03] * 7), alpha=0.05)
    assert found[19].is_enough
    assert found[-1].value >= found[-1].needed, "evidence for it never shrinks"
    assert found[-1].against >= found[-1].needed
    assert not found[-1].is_enough


def test_one_that_stays_better_is_not_stopped_by_looking_at_weeks() -> None:
    found = evidence_by_night(nights(*[0.03] * 30), alpha=0.05)
    assert all(night.is_enough for night in found[5:])
    assert [night.nights for night in found] == list(range(1, 31))


def test_a_score_far_outside_counts_as_the_bound() -> None:
    wild = [(USERS, np.where(np.arange(500) == 0, 40.0, -0.02)) for _ in range(5)]
    assert not evidence_by_night(wild, alpha=0.05)[-1].is_enough


def test_who_loses_much_with_a_few_users_is_not_better_because_a_loss_is_cut() -> None:
    """Everybody gains .02, but for another user each night, who loses 15: worse by .01 on average."""
    lost = [(USERS, np.where(np.arange(500) == night * 37 % 500, -15.0, 0.02)) for night in range(10)]
    found = evidence_by_night(lost, alpha=0.05)[-1]
    assert found.value >= found.needed, "cut to the bound it looks better"
    assert not found.is_enough
    assert "yet -0.0100 on average" in str(found)


def test_what_can_be_shown_hangs_on_the_users_of_all_nights() -> None:
    """A third of them appears each night: with these alone .024 were the least that any number of nights shows."""
    thirds = [(USERS[night % 3 :: 3], np.full(len(USERS[night % 3 :: 3]), 0.015)) for night in range(30)]
    found = evidence_by_night(thirds, alpha=0.05)
    assert found[0].users == 167
    assert found[-1].users == 500
    assert found[-1].is_enough
    assert "500 users can show 0.0080 or more" in str(found[-1])


def test_what_was_worse_for_long_is_not_enough_because_of_a_good_week() -> None:
    found = evidence_by_night(nights(*[0.03] * 10, *[-0.08] * 20, *[0.03] * 7), alpha=0.05)[-1]
    assert found.value >= found.needed
    assert found.against >= found.needed
    assert not found.is_enough
