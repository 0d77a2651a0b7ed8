"""A language model as the generator: a tiny Qwen2 made on the spot, decoded and trained by the generator's own code."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from plain_reading import sequence_logits
from safetensors.torch import load_file, save_file
from small_generator import all_codes, reference_log_probs
from transformers import AutoTokenizer

from sgrec_core.generator import (
    Generator,
    GeneratorConfig,
    ItemTrie,
    TrainingConfig,
    beam_search,
    rank_items,
    score_items,
    train_supervised,
)
from sgrec_core.generator.checkpoints import Checkpoints
from sgrec_core.generator.dataset import Catalogue
from sgrec_core.generator.language_model import LanguageModel, code_tokens, read_language_model
from sgrec_core.generator.packing import Batch, Windows, cut_windows
from sgrec_core.generator.stored import rebuild, take_apart
from sgrec_core.generator.training import packed_loss
from sgrec_core.judge.engines.tiny_model import make_tiny_model

LEVELS, CODES = 3, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("qwen2"))


@pytest.fixture
def model(folder: Path) -> Generator:
    torch.manual_seed(0)
    pretrained, shape = read_language_model(folder, levels=LEVELS, codebook_size=CODES)
    config = GeneratorConfig(levels=LEVELS, codebook_size=CODES, max_items=5, **shape)
    return Generator(config, LanguageModel(config, pretrained)).eval()


def catalogue() -> ItemTrie:
    return ItemTrie.build(np.random.default_rng(0).permutation(all_codes(LEVELS, CODES))[:20], CODES)


HISTORIES = torch.tensor([[3, 7, 7, 11], [5, -1, -1, -1], [-1, -1, -1, -1], [0, 19, -1, -1]])


def test_full_beam_finds_what_enumeration_finds(model: Generator) -> None:
    trie = catalogue()
    beams = beam_search(model, trie, HISTORIES, width=trie.items)
    for row, history in enumerate(HISTORIES):
        expected = reference_log_probs(model, trie, history)
        found = beams.items[row].numpy()
        assert found.tolist() == np.argsort(-expected.sum(axis=1), kind="stable").tolist()
        np.testing.assert_allclose(beams.log_probs[row].numpy(), expected[found], atol=1e-4)


def test_a_narrow_beam_keeps_the_pasts_of_its_own_beams(model: Generator) -> None:
    trie = catalogue()
    beams = beam_search(model, trie, HISTORIES, width=4)
    scores = score_items(model, trie, HISTORIES, beams.items)
    np.testing.assert_allclose(beams.log_probs.numpy(), scores.log_probs.detach().numpy(), atol=1e-4)
    for row, history in enumerate(HISTORIES):
        expected = reference_log_probs(model, trie, history)
        np.testing.assert_allclose(beams.log_probs[row].numpy(), expected[beams.items[row].numpy()], atol=1e-4)


def test_scores_have_gradients_down_to_the_embeddings(model: Generator) -> None:
    score_items(model, catalogue(), HISTORIES, torch.tensor([[1, 2]] * 4)).log_probs.sum().backward()
    gradient = model.encoder.language_model.get_input_embeddings().weight.grad
    assert gradient[model.encoder.first_code :].any()
    assert gradient[: model.encoder.first_code].any(), "the prompt's words"


def test_a_packed_batch_gives_the_loss_of_its_windows(model: Generator) -> None:
    trie = catalogue()
    windows = Windows(
        np.array([[1, 2, 3, -1], [4, 5, -1, -1], [6, 7, 8, -1]], dtype=np.int32), np.array([1, 0, 2], dtype=np.int32)
    )
    with torch.no_grad():
        loss = packed_loss(model, trie, Batch.of(windows, np.arange(3), model.device), 0.0).item()
        expected = 0.0
        for row, first in zip(windows.items, windows.first_target, strict=True):
            codes = trie.codes[torch.from_numpy(row[row >= 0]).long()]
            chosen = sequence_logits(model.encoder, codes[None])[0].log_softmax(-1).gather(-1, codes[..., None])
            expected -= chosen[first:].sum().item()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_training_learns_the_order_of_items_and_what_is_stored_is_rebuilt(model: Generator, tmp_path: Path) -> None:
    """Users walk round a circle of items; the training is the generator's, checkpoints included."""
    trie = catalogue()
    sequences = [(start + np.arange(5)) % trie.items for start in range(trie.items)]
    config = TrainingConfig(
        epochs=40, batch_size=10, learning_rate=3e-3, weight_decay=0.0, label_smoothing=0.0, bfloat16=False, seed=0
    )
    windows = cut_windows(sequences, [0] * len(sequences), 5)
    losses = train_supervised(model, trie, windows, config, checkpoints=Checkpoints(tmp_path / "checkpoints", 30))
    assert losses[-1] < losses[0] / 2
    histories = np.array([[start, (start + 1) % trie.items, -1] for start in range(trie.items)])
    best = rank_items(model, trie, histories, width=5, count=1)
    assert (best.items[:, 0].numpy() == (np.arange(trie.items) + 2) % trie.items).mean() >= 0.9

    ids = pa.array([f"i{number:02d}" for number in range(trie.items)])
    tensors, config = take_apart(model, Catalogue(ids, trie.codes.numpy(), CODES, "t"))
    save_file(tensors, tmp_path / "model.safetensors")
    again, read = rebuild(load_file(tmp_path / "model.safetensors"), json.loads(json.dumps(config)))
    assert again.config == model.config
    same = rank_items(again, read.trie, histories, width=5, count=1)
    assert torch.equal(same.items, best.items)
    torch.testing.assert_close(same.log_probs, best.log_probs)
    del tensors["language_model.model.norm.weight"]
    with pytest.raises(ValueError, match=r"missing \['language_model.model.norm.weight'\], unknown \[\]"):
        rebuild(tensors, config)


def test_a_prompt_without_words_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="the prompt '' has no token"):
        read_language_model(folder, levels=LEVELS, codebook_size=CODES, prompt="")


def test_code_tokens_that_a_model_has_already_keep_their_embeddings(folder: Path, tmp_path: Path) -> None:
    """As in models that others trained on semantic ids."""
    first, shape = read_language_model(folder, levels=LEVELS, codebook_size=CODES)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(code_tokens(LEVELS, CODES))
    tokenizer.save_pretrained(tmp_path)
    first.save_pretrained(tmp_path)
    again, same_shape = read_language_model(tmp_path, levels=LEVELS, codebook_size=CODES)
    assert torch.equal(again.get_input_embeddings().weight, first.get_input_embeddings().weight)
    assert same_shape["language_model"]["first_code"] == shape["language_model"]["first_code"]
