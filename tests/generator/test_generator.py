"""The generator's model, trie, decoding and training, on catalogues small enough to enumerate."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_reading import sequence_logits
from small_generator import all_codes, knows, reference_log_probs, small_generator, some_windows

from sgrec_core.generator import (
    Generator,
    GeneratorConfig,
    ItemTrie,
    TrainingConfig,
    beam_search,
    rank_items,
    sample_items,
    score_items,
    train_supervised,
)
from sgrec_core.generator.decoding import read_histories
from sgrec_core.generator.packing import Batch, Windows, cut_windows
from sgrec_core.generator.scorers import ItemLogits, Scorer
from sgrec_core.generator.training import packed_loss


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    levels, codebook_size = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    every = all_codes(levels, codebook_size)
    size = draw(st.integers(1, min(20, len(every))))
    seed = draw(st.integers(0, 1000))
    return np.random.default_rng(seed).permutation(every)[:size], codebook_size


@st.composite
def cases(draw: st.DrawFn) -> tuple[Generator, ItemTrie, torch.Tensor]:
    """Model, trie and histories of two or three users of different lengths, one possibly without any history.

    Two of three models have an item head, half of these a memory beside it.
    """
    codes, codebook_size = draw(catalogues())
    seed = draw(st.integers(0, 1000))
    draws = np.random.default_rng(seed)
    histories = np.full((draw(st.integers(2, 3)), 4), -1)
    for row in histories:
        length = draws.integers(0, 5)
        row[:length] = draws.integers(0, len(codes), length)
    trie = ItemTrie.build(codes, codebook_size)
    items, followers = draw(st.sampled_from([(0, 0), (trie.items, 0), (trie.items, 3)]))
    model = small_generator(codes.shape[1], codebook_size, seed, items=items, followers=followers)
    knows(model, trie)
    return model, trie, torch.from_numpy(histories)


@given(cases())
@settings(max_examples=40, deadline=None)
def test_full_beam_finds_what_enumeration_finds(case: tuple[Generator, ItemTrie, torch.Tensor]) -> None:
    model, trie, histories = case
    beams = beam_search(model, trie, histories, width=trie.items)
    for row, history in enumerate(histories):
        expected = reference_log_probs(model, trie, history)
        order = np.argsort(-expected.sum(axis=1), kind="stable")
        found = beams.items[row].numpy()
        assert sorted(found) == list(range(trie.items))
        np.testing.assert_allclose(beams.log_probs[row].numpy(), expected[found], atol=1e-4)
        # Items whose scores differ only by rounding may stand either way round.
        np.testing.assert_allclose(expected.sum(axis=1)[found], expected.sum(axis=1)[order], atol=1e-4)
    np.testing.assert_allclose(beams.scores.exp().sum(1).numpy(), 1.0, atol=1e-4)


@given(cases(), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_narrow_beam_equals_plain_beam_search(case: tuple[Generator, ItemTrie, torch.Tensor], width: int) -> None:
    model, trie, histories = case
    beams = beam_search(model, trie, histories, width=width)
    for row, history in enumerate(histories):
        score = reference_log_probs(model, trie, history)
        codes = trie.codes.tolist()
        kept: list[list[int]] = [[]]
        for level in range(trie.levels):
            reach = {}
            for item, code in enumerate(codes):
                if code[:level] in kept:
                    reach[tuple(code[: level + 1])] = score[item, : level + 1].sum()
            kept = [list(prefix) for prefix in sorted(reach, key=lambda prefix: -reach[prefix])[:width]]
        found = beams.items[row].tolist()
        assert len(found) == len(set(found)) == min(width, trie.items)
        best = sorted((score[codes.index(prefix)].sum() for prefix in kept), reverse=True)
        np.testing.assert_allclose(score[found].sum(axis=1), best, atol=1e-4)


@given(cases(), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_excluded_items_never_come_and_the_others_keep_their_probabilities(
    case: tuple[Generator, ItemTrie, torch.Tensor], seed: int
) -> None:
    model, trie, histories = case
    excluded = torch.from_numpy(np.random.default_rng(seed).integers(-1, trie.items, (len(histories), 3)))
    count = trie.items
    everything = beam_search(model, trie, histories, width=count)
    beams = beam_search(model, trie, histories, width=count, excluded=excluded)
    for row, banned in enumerate(excluded.tolist()):
        expected = [item for item in everything.items[row].tolist() if item not in banned]
        assert beams.items[row, : len(expected)].tolist() == expected
        assert (beams.items[row, len(expected) :] == -1).all()
        np.testing.assert_allclose(
            beams.scores[row, : len(expected)].numpy(),
            [everything.scores[row][everything.items[row] == item].item() for item in expected],
            rtol=1e-4,
        )


@given(cases(), st.integers(1, 4), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_a_narrow_beam_with_exclusion_is_the_wider_one_without_these_items(
    case: tuple[Generator, ItemTrie, torch.Tensor], width: int, seed: int
) -> None:
    model, trie, histories = case
    excluded = torch.from_numpy(np.random.default_rng(seed).integers(0, trie.items, (len(histories), 2)))
    beams = beam_search(model, trie, histories, width=width, excluded=excluded)
    wider = beam_search(model, trie, histories, width=width + 2)
    for row, banned in enumerate(excluded.tolist()):
        left = [item for item in wider.items[row].tolist() if item not in banned][:width]
        assert beams.items[row, : len(left)].tolist() == left
        assert len(left) >= min(width, trie.items - len(set(banned)))


@given(cases())
@settings(max_examples=30, deadline=None)
def test_scores_of_given_items_equal_those_of_the_search(case: tuple[Generator, ItemTrie, torch.Tensor]) -> None:
    model, trie, histories = case
    beams = beam_search(model, trie, histories, width=min(5, trie.items))
    scores = score_items(model, trie, histories, beams.items)
    np.testing.assert_allclose(scores.log_probs.detach().numpy(), beams.log_probs.numpy(), atol=1e-4)
    assert (scores.entropy >= -1e-6).all()


@given(cases())
@settings(deadline=None, max_examples=25)
def test_sampled_items_are_real_and_carry_their_probabilities(case: tuple[Generator, ItemTrie, torch.Tensor]) -> None:
    model, trie, histories = case
    drawn = sample_items(model, trie, histories, count=5, generator=torch.Generator().manual_seed(1))
    assert ((drawn.items >= 0) & (drawn.items < trie.items)).all()
    scores = score_items(model, trie, histories, drawn.items.clone())
    torch.testing.assert_close(drawn.log_probs.clone(), scores.log_probs.detach(), atol=1e-4, rtol=1e-4)


def test_samples_follow_the_policy() -> None:
    codes = np.random.default_rng(2).permutation(all_codes(3, 3))[:8]
    model, trie = small_generator(3, 3, sharpness=6.0), ItemTrie.build(codes, 3)
    history = torch.tensor([[1, 5, -1, -1]])
    drawn = sample_items(model, trie, history, count=20_000, generator=torch.Generator().manual_seed(0)).items[0]
    share = torch.bincount(drawn, minlength=8) / len(drawn)
    everything = beam_search(model, trie, history, width=8)
    expected = torch.zeros(8).scatter(0, everything.items[0].clone(), everything.scores[0].exp().clone())
    assert expected.max() < 0.9
    torch.testing.assert_close(share, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize(("known", "followers"), [(0, 0), (300, 0), (300, 8)])
def test_bfloat16_changes_few_entries_and_no_weights(known: int, followers: int) -> None:
    codes = np.random.default_rng(0).permutation(all_codes(3, 8))[:300]
    model, trie = small_generator(3, 8, sharpness=5.0, items=known, followers=followers), ItemTrie.build(codes, 8)
    knows(model, trie)
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    histories = np.random.default_rng(1).integers(0, 300, (40, 4))
    exact = rank_items(model, trie, histories, width=20).items.numpy()
    rough = rank_items(model, trie, histories, width=20, bfloat16=True)
    assert rough.log_probs.dtype == torch.float32
    assert np.mean([np.isin(*rows).mean() for rows in zip(exact, rough.items.numpy(), strict=True)]) > 0.95
    assert all(torch.equal(model.state_dict()[name], weights) for name, weights in before.items())


def test_a_new_item_is_known_by_its_codes_and_an_old_one_keeps_its_vector() -> None:
    every = np.random.default_rng(4).permutation(all_codes(2, 4))
    old, new = ItemTrie.build(every[:9], 4), ItemTrie.build(every[[12, 3, 7, 0]], 4)
    model = small_generator(2, 4, items=9, followers=3)
    knows(model, old)
    hidden = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    before = (hidden @ model.item_head.vectors().T).detach()
    with pytest.raises(ValueError, match="not that of the 4 items of this trie"):
        beam_search(model, new, torch.tensor([[0, 1]]), width=2)
    model.align(new)
    after = (hidden @ model.item_head.vectors().T).detach()
    torch.testing.assert_close(after[:, 1:], before[:, [3, 7, 0]])
    of_codes = sum(model.item_head.of_codes[level, code] for level, code in enumerate(every[12]))
    torch.testing.assert_close(after[:, 0], hidden @ of_codes.detach())
    assert model.config.items == 4
    again = Generator(model.config)
    again.load_state_dict(model.state_dict())
    assert torch.equal(beams_of(again, new), beams_of(model, new))


def test_with_all_the_weight_the_policy_is_the_softmax_of_the_item_head_and_with_none_that_of_the_codes() -> None:
    trie = ItemTrie.build(all_codes(3, 3)[::2], 3)
    model, plain = small_generator(3, 3, sharpness=5.0, items=trie.items), small_generator(3, 3, sharpness=5.0)
    knows(model, trie)
    histories, every = torch.tensor([[0, 5, -1], [-1, -1, -1]]), torch.arange(trie.items).expand(2, -1)
    model.config = replace(model.config, item_weight=1.0)
    scores = score_items(model, trie, histories, every).log_probs.sum(dim=-1)
    hidden = read_histories(model, trie, histories, None)[0].hidden
    torch.testing.assert_close(scores, (hidden @ model.item_head.vectors().T).log_softmax(dim=-1), atol=1e-4, rtol=1e-4)
    model.config = replace(model.config, item_weight=0.0)
    plain.load_state_dict({name: weights for name, weights in model.state_dict().items() if "item_head" not in name})
    ours, theirs = (beam_search(each, trie, histories, width=4).log_probs for each in (model, plain))
    assert torch.equal(ours, theirs)


class Favourites(Scorer):
    """Expects of items what the newest one of a history says, whoever asks."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)

    def over(self, trie: ItemTrie) -> ItemLogits:
        return lambda hidden, histories: self.logits[histories[:, 0]].T


class Advised(Generator):
    """A generator with a third scorer."""

    favourites: Favourites

    @property
    def scorers(self) -> list[tuple[Scorer, float]]:
        return [*super().scorers, (self.favourites, 0.25)]


def test_a_further_scorer_takes_its_share_beside_those_before_it() -> None:
    trie = ItemTrie.build(all_codes(2, 3), 3)
    plain = small_generator(2, 3, sharpness=5.0, items=trie.items, followers=3)
    knows(plain, trie)
    model = Advised(replace(plain.config, item_weight=1.0))
    model.load_tensors(plain.tensors())
    model.favourites = Favourites(torch.randn(trie.items, trie.items))
    model.eval()
    histories, every = torch.tensor([[2, 5, -1], [7, -1, -1]]), torch.arange(trie.items).expand(2, -1)
    hidden = read_histories(model, trie, histories, None)[0].hidden
    by_head, by_memory = hidden @ model.item_head.vectors().T, model.memory.log_probs(histories)
    expected = 0.75 * (0.4 * by_head + 0.6 * by_memory) + 0.25 * model.favourites.logits[histories[:, 0]]
    found = score_items(model, trie, histories, every).log_probs.sum(dim=-1)
    torch.testing.assert_close(found, expected.log_softmax(dim=-1), atol=1e-4, rtol=1e-4)
    beams = beam_search(model, trie, histories, width=trie.items)
    assert torch.equal(beams.items, expected.argsort(dim=-1, descending=True))


def test_tensors_keep_the_names_under_which_earlier_generators_are_registered() -> None:
    block = ["attention_norm.weight", "attention.project_in.weight", "attention.project_out.weight",
             "feed_norm.weight", "feed_in.weight", "feed_out.weight"]  # fmt: skip
    of_encoder = [
        "codebooks",
        "embedding.weight",
        "final_norm.weight",
        *(f"blocks.{n}.{b}" for n in (0, 1) for b in block),
    ]
    of_scorers = [f"item_head.{name}" for name in ("codes", "of_codes", "own")]
    of_scorers += [f"memory.{name}" for name in ("followers", "counts", "totals", "popularity")]
    assert sorted(small_generator(2, 3, items=9, followers=2).tensors()) == sorted([*of_encoder, *of_scorers])


def test_a_generator_registered_before_there_were_item_heads_has_none() -> None:
    config = {"levels": 2, "codebook_size": 4, "width": 16, "layers": 1, "heads": 2, "max_items": 4, "dropout": 0.0}
    assert Generator(GeneratorConfig(**config)).item_head is None


def beams_of(model: Generator, trie: ItemTrie) -> torch.Tensor:
    return beam_search(model.eval(), trie, torch.tensor([[0, 1]]), width=3).log_probs


def test_without_memory_the_weights_are_shared_and_the_policy_is_the_networks() -> None:
    trie = ItemTrie.build(all_codes(2, 3), 3)
    model = small_generator(2, 3, items=trie.items, followers=3)
    knows(model, trie)
    network = model.without_memory()
    plain = small_generator(2, 3, items=trie.items)
    knows(plain, trie)
    assert not torch.equal(beams_of(model, trie), beams_of(network, trie))
    assert torch.equal(beams_of(network, trie), beams_of(plain, trie))
    with torch.no_grad():
        network.encoder.codebooks.neg_()
    assert torch.equal(model.encoder.codebooks, network.encoder.codebooks)
    assert (model.config.memory_weight, network.config.memory_weight) == (0.6, 0.0)


@pytest.mark.parametrize(("known", "followers"), [(0, 0), (7, 0), (7, 3)])
def test_item_scores_have_gradients_that_match_finite_differences(known: int, followers: int) -> None:
    model = small_generator(2, 3, sharpness=5.0, items=known, followers=followers).double()
    trie = ItemTrie.build(all_codes(2, 3)[:7], 3)
    knows(model, trie)
    histories, items = torch.tensor([[0, 3, -1, -1], [5, -1, -1, -1]]), torch.tensor([[1, 2], [6, 0]])

    def total() -> torch.Tensor:
        return score_items(model, trie, histories, items).log_probs.double().sum()

    total().backward()
    weight = model.encoder.blocks[1].attention.project_in.weight if not known else model.item_head.own
    index = int(weight.grad.abs().argmax())
    slope = weight.grad.flatten()[index].item()
    step = 1e-2
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.view(-1)[index] += sign * step
            values.append(total().item())
            weight.view(-1)[index] -= sign * step
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=0.02)


def test_padding_and_batching_change_nothing() -> None:
    model, trie = small_generator(3, 4), ItemTrie.build(all_codes(3, 4)[::3], 4)
    draws = np.random.default_rng(0)
    histories = np.full((11, 4), -1)
    for row, length in zip(histories, draws.integers(0, 5, 11), strict=True):
        row[:length] = draws.integers(0, trie.items, length)
    together = rank_items(model, trie, histories, width=6, batch_size=4)
    for row, history in enumerate(histories):
        alone = rank_items(model, trie, history[None], width=6)
        assert together.items[row].tolist() == alone.items[0].tolist()
        np.testing.assert_allclose(together.log_probs[row], alone.log_probs[0], atol=1e-5)


def test_the_past_alone_decides() -> None:
    """A later item must not leak into the prediction of an earlier one."""
    model = small_generator(2, 4)
    codes = torch.tensor([[[0, 1], [2, 3], [1, 1]]])
    changed = codes.clone()
    changed[0, 2] = torch.tensor([3, 0])
    before, after = sequence_logits(model.encoder, codes), sequence_logits(model.encoder, changed)
    torch.testing.assert_close(before[0, :2], after[0, :2])
    torch.testing.assert_close(before[0, 2, 0], after[0, 2, 0])
    assert not torch.allclose(before[0, 2, 1], after[0, 2, 1])


@given(catalogues())
@settings(max_examples=50, deadline=None)
def test_trie_walks_to_every_item_and_to_nothing_else(catalogue: tuple[np.ndarray, int]) -> None:
    codes, codebook_size = catalogue
    trie = ItemTrie.build(codes, codebook_size)
    node = torch.zeros(len(codes), dtype=torch.int64)
    for level in range(trie.levels):
        assert node.tolist() == trie.path[:, level].tolist()
        for item, at in enumerate(node.tolist()):
            siblings = {row[level] for row in codes.tolist() if row[:level] == codes[item, :level].tolist()}
            assert set(trie.children[at].nonzero().flatten().tolist()) == siblings
        node = trie.child(node, trie.codes[:, level])
    assert trie.item(node).tolist() == list(range(len(codes)))


@given(catalogues())
@settings(deadline=None)
def test_a_node_with_one_item_below_is_settled(catalogue: tuple[np.ndarray, int]) -> None:
    codes, codebook_size = catalogue
    trie = ItemTrie.build(codes, codebook_size)
    for item, row in enumerate(codes):
        node = torch.tensor(0)
        for depth, code in enumerate(row, start=1):
            node = trie.child(node, torch.tensor(code))
            alone = (codes[:, :depth] == row[:depth]).all(axis=1).sum() == 1
            assert bool(trie.is_leaf(trie.settled[node])) == alone
            assert trie.item(trie.settled[node]) == item if alone else trie.settled[node] == node


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[0, 1], [1, 0], [0, 1]], r"items 0 and 2 share the codes \[0, 1\]"),
        ([[0, 1], [0, 4]], r"codes \[0, 4\] of item 1 are not all in \[0, 4\)"),
        ([[0, -1]], r"codes \[0, -1\] of item 0"),
        (np.zeros((0, 2)), "at least one item"),
    ],
)
def test_trie_names_codes_that_it_cannot_hold(codes: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ItemTrie.build(np.array(codes), 4)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), min_size=1, max_size=8), st.integers(1, 6))
def test_windows_hold_every_target_once_with_its_nearest_history(shapes: list[tuple[int, int]], max_items: int) -> None:
    start = np.cumsum([0] + [length for length, _ in shapes])
    sequences = [np.arange(at, at + length) for at, (length, _) in zip(start, shapes, strict=False)]
    windows = cut_windows(sequences, [first for _, first in shapes], max_items)
    targets = []
    for row, first in zip(windows.items, windows.first_target, strict=True):
        items = row[row >= 0]
        assert 0 < len(items) <= max_items + 1
        assert (np.diff(items) == 1).all()
        targets.extend(items[first:])
    assert targets == [
        item for sequence, (_, first) in zip(sequences, shapes, strict=True) for item in sequence[first:]
    ]
    assert windows.targets == len(targets)


def training_set() -> tuple[ItemTrie, list[np.ndarray]]:
    """Users who walk round a circle of 12 items, each from another item."""
    trie = ItemTrie.build(all_codes(2, 4)[:12], 4)
    return trie, [(start + np.arange(6)) % 12 for start in range(12)] * 4


def train_small(seed: int) -> tuple[Generator, list[float]]:
    trie, sequences = training_set()
    torch.manual_seed(seed)
    model = Generator(GeneratorConfig(levels=2, codebook_size=4, width=32, layers=2, heads=2, max_items=5, dropout=0.0))
    windows = cut_windows(sequences, [0] * len(sequences), 5)
    losses = train_supervised(
        model,
        trie,
        windows,
        TrainingConfig(
            epochs=30,
            batch_size=16,
            learning_rate=1e-2,
            weight_decay=0.1,
            label_smoothing=0.0,
            bfloat16=False,
            seed=seed,
        ),
    )
    return model, losses


def test_training_learns_the_order_of_items() -> None:
    model, losses = train_small(0)
    trie, _ = training_set()
    assert losses[-1] < losses[0] / 2
    histories = np.array([[start, (start + 1) % 12, -1, -1, -1] for start in range(12)])
    best = rank_items(model, trie, histories, width=3, count=1).items[:, 0].tolist()
    assert best == [(start + 2) % 12 for start in range(12)]


def test_training_is_deterministic_by_seed() -> None:
    (first, _), (again, _), (other, _) = train_small(1), train_small(1), train_small(2)
    for name, parameter in first.state_dict().items():
        assert torch.equal(parameter, again.state_dict()[name]), name
    assert not torch.equal(first.encoder.codebooks, other.encoder.codebooks)


def test_gradients_are_the_same_every_time_with_several_threads() -> None:
    """A catalogue so large that torch shares its sums out: those of indexed weights came in another order each time."""
    items, before = 300, torch.get_num_threads()
    trie = ItemTrie.build(np.random.default_rng(0).permutation(all_codes(3, 8))[:items], 8)
    shape = {"width": 128, "layers": 1, "heads": 4, "max_items": 4, "dropout": 0.0}
    model = Generator(GeneratorConfig(levels=3, codebook_size=8, items=items, **shape))
    assert model.item_head is not None
    model.item_head.codes = trie.codes.clone()
    windows = some_windows(items, seed=0, count=200)
    batch = Batch.of(windows, np.arange(len(windows.items)), model.device)
    histories = torch.from_numpy(windows.items[:64, :4]).long()
    groups = torch.randint(items, (64, 16), generator=torch.Generator().manual_seed(0))

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        (packed_loss(model, trie, batch, 0.0) - score_items(model, trie, histories, groups).log_probs.mean()).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    try:
        torch.set_num_threads(2)
        first = gradients()
        for _ in range(20):
            assert all(map(torch.equal, gradients(), first))
    finally:
        torch.set_num_threads(before)


def test_positions_before_the_first_target_are_read_but_not_trained() -> None:
    trie, _ = training_set()
    model = small_generator(2, 4)
    windows = Windows(np.array([[0, 1, 2, -1], [3, 4, -1, -1]], dtype=np.int32), np.array([2, 1], dtype=np.int32))
    loss = packed_loss(model, trie, Batch.of(windows, np.array([0, 1]), model.device), 0.0)
    logits = sequence_logits(model.encoder, trie.codes[torch.tensor([[0, 1, 2], [3, 4, 0]])]).log_softmax(-1)
    expected = [logits[0, 2, level, trie.codes[2, level]] for level in (0, 1)]
    expected += [logits[1, 1, level, trie.codes[4, level]] for level in (0, 1)]
    assert loss.item() == pytest.approx(-sum(value.item() for value in expected), rel=1e-5)


def test_configuration_survives_json_and_names_bad_values() -> None:
    values = {"codebook_size": 256, "width": 32, "layers": 2, "heads": 4, "max_items": 20, "dropout": 0.3}
    config = GeneratorConfig(levels=3, **values)
    assert GeneratorConfig(**json.loads(json.dumps(config.as_json()))) == config
    with pytest.raises(ValueError, match="width 20 must be a multiple"):
        GeneratorConfig(levels=3, **{**values, "width": 20})
    with pytest.raises(ValueError, match="items must be at least 0, not -1"):
        GeneratorConfig(levels=3, items=-1, **values)
    with pytest.raises(ValueError, match=r"item_weight must be in \[0, 1\], not 2.0"):
        GeneratorConfig(levels=3, item_weight=2.0, **values)
    with pytest.raises(ValueError, match=r"memory_weight must be in \[0, 1\], not -1.0"):
        GeneratorConfig(levels=3, memory_weight=-1.0, **values)
    with pytest.raises(ValueError, match="followers is 8, and there is no item head"):
        GeneratorConfig(levels=3, followers=8, **values)
    with pytest.raises(ValueError, match="levels must be at least 1"):
        GeneratorConfig(levels=0, **values)
