"""Supervised training: packing, checkpoints that survive a kill, several processes."""

import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_reading import sequence_states
from safetensors.torch import load_file, save_file
from torch import Tensor

from sgrec_core.errors import InputError
from sgrec_core.generator import Generator, GeneratorConfig, ItemTrie, TrainingConfig, train_supervised
from sgrec_core.generator.checkpoints import Checkpoints
from sgrec_core.generator.packing import Batch, Windows, cut_windows
from sgrec_core.generator.processes import main, read_results, train_in_processes, write_inputs
from sgrec_core.generator.training import (
    ROWS,
    _largest,
    _split,
    catalogue_loss,
    packed_loss,
)
from sgrec_core.settings import PROJECT_ROOT

ITEMS, MAX_ITEMS = 40, 6
CONFIG = TrainingConfig(
    epochs=3, batch_size=4, learning_rate=1e-2, weight_decay=0.1, label_smoothing=0.1, bfloat16=False, seed=3
)


def catalogue(levels: int = 3) -> ItemTrie:
    numbers = np.arange(min(ITEMS, 4**levels))
    return ItemTrie.build(np.stack([numbers // 4**level % 4 for level in reversed(range(levels))], axis=1), 4)


def generator(levels: int = 3, dropout: float = 0.0, seed: int = 0) -> Generator:
    """With an item head, aligned with `catalogue`."""
    torch.manual_seed(seed)
    shape = {"width": 16, "layers": 2, "heads": 2, "max_items": MAX_ITEMS}
    trie = catalogue(levels)
    model = Generator(GeneratorConfig(levels=levels, codebook_size=4, dropout=dropout, items=trie.items, **shape))
    model.align(trie)
    return model


def random_windows(lengths: list[int], seed: int = 0) -> Windows:
    draws = np.random.default_rng(seed)
    return cut_windows(
        [draws.integers(0, ITEMS, length) for length in lengths],
        [int(draws.integers(0, length)) for length in lengths],
        MAX_ITEMS,
    )


TWENTY = random_windows([1 + number % 9 for number in range(20)])


def padded_loss(model: Generator, trie: ItemTrie, windows: Windows, smoothing: float) -> Tensor:
    """The sum that `packed_loss` promises, from whole padded windows."""
    items = torch.from_numpy(windows.items).long()
    codes = trie.codes[items.clamp(min=0)]
    states = sequence_states(model.encoder, codes)
    logits = model.encoder.code_logits(states)
    target = (items >= 0) & (torch.arange(items.shape[1]) >= torch.from_numpy(windows.first_target)[:, None])
    labels = trie.codes[items[target]].flatten()
    of_codes = F.cross_entropy(logits[target].flatten(0, 1), labels, label_smoothing=smoothing, reduction="sum")
    before_items = states[:, :, 0][target]
    of_items = F.cross_entropy(
        before_items @ model.item_head.vectors().T, items[target], label_smoothing=smoothing, reduction="sum"
    )
    return of_codes + of_items


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=12),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_packed_windows_give_the_loss_and_gradients_of_padded_ones(
    lengths: list[int], levels: int, filled: bool, seed: int
) -> None:
    trie, model = catalogue(levels), generator(levels, seed=seed).double()
    windows = random_windows(lengths, seed)
    windows = Windows(np.where(windows.items >= 0, windows.items % trie.items, -1), windows.first_target)
    rows = np.random.default_rng(seed).permutation(len(windows.items))
    held = int((windows.items >= 0).sum())
    batch = Batch.of(windows, rows, model.device, filled_to=held + seed % 17 if filled else 0)
    gradients = []
    for loss in (packed_loss(model, trie, batch, 0.1), padded_loss(model, trie, windows, 0.1)):
        gradients.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for packed, padded in zip(*gradients, strict=True):
        torch.testing.assert_close(packed, padded, atol=1e-10, rtol=1e-10)


@given(st.sampled_from([0, 1, ROWS, ROWS + 1, 3 * ROWS - 1]), st.floats(0, 0.5), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_loss_over_the_catalogue_is_one_cross_entropy(count: int, smoothing: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, 8, generator=draw, dtype=torch.float64, requires_grad=True)
    vectors = torch.randn(30, 8, generator=draw, dtype=torch.float64, requires_grad=True)
    items = torch.randint(30, (count,), generator=draw)
    expected = F.cross_entropy(hidden @ vectors.T, items, label_smoothing=smoothing, reduction="sum")
    found = catalogue_loss(hidden, vectors, items, smoothing)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(*(torch.autograd.grad(loss, [hidden, vectors]) for loss in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_filled_batches_have_one_shape() -> None:
    shapes = set()
    for rows in ([0, 3, 5], [7], [1, 2, 4, 6, 8]):
        batch = Batch.of(TWENTY, np.array(rows), torch.device("cpu"), filled_to=40)
        packing = batch.packing
        shapes.add(
            (batch.items.shape, batch.target.shape, packing.position.shape, packing.bounds.shape, packing.longest)
        )
    assert len(shapes) == 1


@given(st.lists(st.integers(1, MAX_ITEMS + 1), min_size=1, max_size=60), st.integers(1, 8))
@settings(max_examples=20, deadline=None)
def test_an_epoch_sees_every_window_once(lengths: list[int], batch_size: int) -> None:
    windows = random_windows(lengths)
    steps: list[int] = []
    config = replace(CONFIG, batch_size=batch_size, epochs=2)
    train_supervised(generator(), catalogue(), windows, config, progress=lambda count, _: steps.append(count))
    assert len(steps) == 2 * math.ceil(len(windows.items) / batch_size)
    assert min(steps) >= 1
    assert sum(steps[: len(steps) // 2]) == sum(steps[len(steps) // 2 :]) == len(windows.items)


@given(st.lists(st.integers(2, 21), min_size=1, max_size=60), st.integers(1, 12))
def test_parts_are_alike_in_items(lengths: list[int], parts: int) -> None:
    sizes = np.array(lengths)
    rows = np.random.default_rng(0).permutation(len(sizes))
    cut = _split(rows, sizes, parts)
    assert np.concatenate(cut).tolist() == rows.tolist()
    held = [int(sizes[part].sum()) for part in cut]
    assert max(held) <= _largest(int(sizes.sum()), parts, sizes)
    if len(rows) >= parts:
        assert min(held) > 0
    # A share and a window at the most: what makes steps alike.
    assert _largest(int(sizes.sum()), parts, sizes) <= sizes.sum() / parts + sizes.max() + 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
def test_a_compiled_training_gives_the_same_weights() -> None:
    """Batches of the same windows, filled up to one shape."""
    plain, compiled = generator(), generator()
    losses = train_supervised(plain, catalogue(), TWENTY, CONFIG)
    again = train_supervised(compiled, catalogue(), TWENTY, replace(CONFIG, compile=True))
    np.testing.assert_allclose(again, losses, atol=1e-5)
    for name, parameter in weights(plain).items():
        torch.testing.assert_close(weights(compiled)[name], parameter, atol=1e-4, rtol=0)


def weights(model: Generator) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same_bits(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def command(work: Path) -> list[str]:
    return [sys.executable, "-m", "sgrec_core.generator.processes", str(work)]


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Killed twice, once within the first epoch; steps of an epoch and between checkpoints do not divide."""
    model = generator(dropout=0.2)
    undisturbed = generator(dropout=0.2)
    config = replace(CONFIG, epochs=20)
    steps = config.epochs * math.ceil(len(TWENTY.items) / config.batch_size)
    losses = train_supervised(undisturbed, catalogue(), TWENTY, config)
    write_inputs(tmp_path, model, catalogue(), TWENTY, config, checkpoint_every=5)

    started_at = []
    for kill_after in (7, 44):
        with subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, text=True, cwd=PROJECT_ROOT) as run:
            assert run.stdout is not None
            lines = [json.loads(next(run.stdout)) for _ in range(kill_after)]
            run.send_signal(signal.SIGKILL)
        assert run.returncode == -signal.SIGKILL
        started_at.append(lines[0]["windows"] if math.isnan(lines[0]["loss"]) else 0)
        with pytest.raises(InputError, match="holds no finished training"):
            read_results(tmp_path, model)
    end = subprocess.run(command(tmp_path), stdout=subprocess.PIPE, text=True, check=True, cwd=PROJECT_ROOT)
    lines = [json.loads(line) for line in end.stdout.splitlines()]
    started_at.append(lines[0]["windows"])
    assert 0 == started_at[0] < started_at[1] < started_at[2]
    assert sum(line["windows"] for line in lines) == config.epochs * len(TWENTY.items)
    assert len(lines) <= 1 + steps - 45

    assert read_results(tmp_path, model) == losses
    assert_same_bits(weights(model), weights(undisturbed))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_a_checkpoint_that_was_being_written_is_none(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 1)
    (tmp_path / "scratch-77").mkdir()
    (tmp_path / "scratch-77" / "tensors.safetensors").write_bytes(b"half of it")
    assert checkpoints.newest({"seed": 1}, torch.device("cpu")) is None
    checkpoints.publish(3, {"weight/a": torch.ones(2)}, {"losses": [0.1]}, {"seed": 1})
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-000000003"]
    tensors, state = checkpoints.newest({"seed": 1}, torch.device("cpu"))
    assert (tensors["weight/a"].tolist(), state["step"], state["losses"]) == ([1, 1], 3, [0.1])


@pytest.mark.parametrize("left", [b"", b'{"identity"', b"\x00\xff"])
def test_a_checkpoint_whose_state_is_damaged_is_none_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, left: bytes
) -> None:
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.publish(3, {"weight/a": torch.ones(2)}, {"losses": [0.1]}, {"seed": 1})
    path = tmp_path / "step-000000003" / "state.json"
    path.write_bytes(left)
    assert checkpoints.newest({"seed": 1}, torch.device("cpu")) is None
    assert f"{path} is damaged" in caplog.text
    assert "the training begins anew" in caplog.text
    checkpoints.publish(3, {"weight/a": torch.ones(2)}, {"losses": [0.1]}, {"seed": 1})
    assert checkpoints.newest({"seed": 1}, torch.device("cpu")) is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": replace(CONFIG, learning_rate=2e-2)}, "training.learning_rate 0.01 there, 0.02 here"),
        (
            {"config": replace(CONFIG, seed=4, epochs=5)},
            "training.epochs 3 there, 5 here; training.seed 3 there, 4 here",
        ),
        ({"windows": random_windows([4, 5])}, "data [0-9a-f]{32} there, [0-9a-f]{32} here"),
        ({"model": generator(seed=1)}, "starting weights [0-9a-f]{32} there"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    train_supervised(generator(), catalogue(), TWENTY, CONFIG, checkpoints=checkpoints)
    with pytest.raises(InputError, match=message):
        train_supervised(
            change.get("model", generator()),
            catalogue(),
            change.get("windows", TWENTY),
            change.get("config", CONFIG),
            checkpoints=checkpoints,
        )


class StoppedError(Exception):
    """What stops a training in the middle."""


def stop_after(steps: int) -> Callable[[int, float], None]:
    seen: list[int] = []

    def progress(count: int, loss: float) -> None:
        seen.append(count)
        if len(seen) == steps:
            raise StoppedError

    return progress


# With one window a step, the second process has nothing to read in any of them.
GROUP_CONFIGS = {"four windows a step": CONFIG, "one window a step": replace(CONFIG, batch_size=1)}


def train_in_group(rank: int, processes: int, folder: Path) -> None:
    """One process of a group of its own; leaves weights and losses. Its second training is stopped once."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=processes)
    for name, config in GROUP_CONFIGS.items():
        model, checkpoints = generator(), Checkpoints(folder / "checkpoints", 7)
        if name == "one window a step":
            with pytest.raises(StoppedError):
                train_supervised(
                    generator(), catalogue(), TWENTY, config, checkpoints=checkpoints, progress=stop_after(31)
                )
            dist.barrier()
            assert list(checkpoints.folder.iterdir())
            losses = train_supervised(model, catalogue(), TWENTY, config, checkpoints=checkpoints)
        else:
            losses = train_supervised(model, catalogue(), TWENTY, config)
        result = {**weights(model), "losses": torch.tensor(losses, dtype=torch.float64)}
        save_file(result, folder / f"{name} {rank}.safetensors")
    dist.destroy_process_group()


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_in_group, (2, tmp_path), nprocs=2)
    for name, config in GROUP_CONFIGS.items():
        model = generator()
        losses = train_supervised(model, catalogue(), TWENTY, config)
        first, second = (load_file(tmp_path / f"{name} {rank}.safetensors") for rank in (0, 1))
        assert_same_bits(first, second)
        np.testing.assert_allclose(first.pop("losses").numpy(), losses, atol=1e-5)
        for parameter, value in weights(model).items():
            torch.testing.assert_close(first[parameter], value, atol=1e-4, rtol=0)


def test_torchrun_trains_what_lies_in_a_folder(tmp_path: Path) -> None:
    model, single = generator(), generator()
    losses = train_supervised(single, catalogue(), TWENTY, CONFIG)
    write_inputs(tmp_path, model, catalogue(), TWENTY, CONFIG, checkpoint_every=4)
    seen: list[int] = []
    train_in_processes(tmp_path, 2, threads=2, progress=lambda count, _: seen.append(count))
    assert sum(seen) == CONFIG.epochs * len(TWENTY.items)
    np.testing.assert_allclose(read_results(tmp_path, model), losses, atol=1e-5)
    for name, parameter in weights(single).items():
        torch.testing.assert_close(weights(model)[name], parameter, atol=1e-4, rtol=0)


def test_a_training_ends_with_the_process_that_it_runs_for(tmp_path: Path) -> None:
    write_inputs(tmp_path, generator(), catalogue(), TWENTY, CONFIG, checkpoint_every=4)
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(SystemExit, match=f"process {gone.pid}, for which this training ran, has ended"):
        main([str(tmp_path), "--parent", str(gone.pid)])
