"""User-conditional weights of the aspects."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgrec_core.aggregator.features import state_features
from sgrec_core.aggregator.network import AspectWeights, Pairs, fit
from sgrec_core.settings import AggregatorSettings

ASPECTS = ["s0", "s1", "s2"]


def states_table(histories: list[list[str]], profiles: list[str | None]) -> pa.Table:
    return pa.table(
        {
            "history": pa.array(histories, pa.list_(pa.string())),
            "profile": pa.array(profiles, pa.string()),
            "context": pa.array([None] * len(histories), pa.string()),
            "target_item": pa.array([f"i{number % 5}" for number in range(len(histories))]),
        }
    )


def item_vectors(count: int = 30) -> tuple[list[str], np.ndarray]:
    vectors = np.random.default_rng(0).normal(size=(count, 384)).astype(np.float32)
    return [f"i{number}" for number in range(count)], vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def planted_pairs(count: int = 3000, users: int = 300) -> Pairs:
    """Half of the users go by aspect s0, half by s2; their profile says which."""
    generator = np.random.default_rng(1)
    user = generator.integers(users, size=count)
    curious = user % 2 == 0
    profiles = [json.dumps({"manner": "curious" if c else "loyal"}) for c in curious]
    histories = [[f"i{item}" for item in generator.integers(30, size=5)] for _ in range(count)]
    features = state_features(states_table(histories, profiles), *item_vectors(), seed=0)
    first, second = generator.uniform(-1, 1, size=(2, count, 3)).astype(np.float32)
    true = np.where(curious[:, None], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1])
    swap = (true * (first - second)).sum(axis=1) < 0
    preferred, other = np.where(swap[:, None], second, first), np.where(swap[:, None], first, second)
    return Pairs([f"u{number}" for number in user], features, preferred, other)


def test_planted_taste_is_learnt_and_measured_on_held_out_users():
    pairs = planted_pairs()
    module, figures = fit(pairs, ASPECTS, AggregatorSettings())
    assert figures["pair_auc"] > 0.95 > 0.9 > figures["pair_auc_uniform"]
    assert figures["pair_auc_gain_lower"] > 0.05
    assert figures["pair_auc_lower"] <= figures["pair_auc"] <= figures["pair_auc_upper"]
    assert 30 < figures["held_out_users"] < 90
    learnt = module.weights(pairs.features)
    curious = np.array([int(user[1:]) % 2 == 0 for user in pairs.users])
    assert (learnt[curious].argmax(axis=1) == 2).mean() > 0.95
    assert (learnt[~curious].argmax(axis=1) == 0).mean() > 0.95


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(0, 50), seed=st.integers(0, 1000))
def test_weights_are_a_distribution(scale, seed):
    generator = np.random.default_rng(seed)
    module = AspectWeights(10, ASPECTS)
    module.output.weight.data.normal_(0, 5)
    weights = module.weights((scale * generator.normal(size=(20, 10))).astype(np.float32))
    assert weights.dtype == np.float32
    assert (weights >= 0).all()
    assert (weights <= 1).all()
    np.testing.assert_allclose(weights.astype(np.float64).sum(axis=1), 1, atol=1e-6)


def test_without_evidence_the_weights_are_uniform():
    none = Pairs([], np.zeros((0, 12), dtype=np.float32), np.zeros((0, 3)), np.zeros((0, 3)))
    module, figures = fit(none, ASPECTS, AggregatorSettings())
    assert figures == {"pairs": 0, "held_out_pairs": 0, "held_out_users": 0}
    np.testing.assert_allclose(module.weights(np.ones((2, 12), dtype=np.float32)), 1 / 3)


def test_fit_repeats_and_survives_its_tensors():
    pairs = planted_pairs(600)
    module, figures = fit(pairs, ASPECTS, AggregatorSettings(seed=3, epochs=5))
    again, figures_again = fit(pairs, ASPECTS, AggregatorSettings(seed=3, epochs=5))
    assert figures == figures_again
    loaded = AspectWeights.from_tensors(module.tensors(), json.loads(json.dumps(module.config())))
    for other in (again, loaded):
        np.testing.assert_array_equal(module.weights(pairs.features), other.weights(pairs.features))


def test_features_know_the_state_and_never_the_target():
    states = states_table([["i1", "i2", "i1"], [], ["gone"], ["i3"]], ['{"age": 30}', None, "not json", "[1]"])
    ids, vectors = item_vectors()
    features = state_features(states, ids, vectors, seed=0)
    assert np.isfinite(features).all()
    assert len({row.tobytes() for row in features}) == 4
    moved = states.set_column(3, "target_item", pa.array(["i9"] * 4))
    np.testing.assert_array_equal(features, state_features(moved, ids, vectors, seed=0))
    order = states_table([["i2", "i1", "i1"]], ['{"age": 30}'])
    assert not np.array_equal(state_features(order, ids, vectors, seed=0)[0], features[0]), "recency counts"
    without_text = state_features(states, ids, None, seed=0)
    assert without_text.shape == features.shape
    assert without_text[0, 48] == pytest.approx(np.log1p(3))
