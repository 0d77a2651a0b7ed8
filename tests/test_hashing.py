"""Hash sampling: uniform, fixed by its seed, independent of order."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sgrec_core.hashing import digest, hash_share, is_validation_user, share_not_among


@given(st.lists(st.text(), min_size=1, max_size=50), st.integers())
def test_a_share_depends_on_key_and_seed_alone(keys: list[str], seed: int) -> None:
    shares = hash_share(keys, seed)
    assert ((shares >= 0) & (shares < 1)).all()
    assert (hash_share(keys[::-1], seed)[::-1] == shares).all()


def test_shares_are_uniform_and_seeds_independent() -> None:
    keys = [str(number) for number in range(20_000)]
    one, two = hash_share(keys, 1), hash_share(keys, 2)
    counts = np.histogram(one, bins=20, range=(0, 1))[0]
    # Binomial(20000, 1/20) has deviation 31: five of them.
    assert np.abs(counts - 1000).max() < 155
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.04


def test_the_held_out_users_are_always_the_same() -> None:
    users = [f"u{number}" for number in range(10_000)]
    held_out = is_validation_user(users, 0.1)
    assert 850 < held_out.sum() < 1150
    # A larger share keeps those that a smaller one held out.
    assert (is_validation_user(users, 0.2) | ~held_out).all()


@given(st.text(), st.text())
def test_digests_do_not_depend_on_how_parts_join(a: str, b: str) -> None:
    if b:
        assert digest(a, b) != digest(a + b)
    assert digest(a, b) == digest(a, b)


def test_the_share_that_holds_out_none_of_some_users() -> None:
    users = [f"u{number}" for number in range(200)]
    share = share_not_among(users[:50])
    assert not is_validation_user(users[:50], share).any()
    assert is_validation_user(users[:50], share + 1e-9).sum() == 1
    assert share_not_among([]) == 1
