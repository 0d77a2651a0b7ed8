"""Supervised training against what the machine can multiply, against padding, and against sliding windows.

    python -m benchmarks.training [--short] [--data ../shared/data] [--device cpu] [--size default]

Windows of Amazon Scientific (without the data folder: of random sequences). The ceiling is what the machine reaches on
the step's own matrix products in bfloat16, forward and backward, one after the other with nothing between them. The
ways to train alternate in one process; peak memory is measured in fresh ones.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks import data
from benchmarks.report import Claim, write
from sgrec_core.generator import Generator, GeneratorConfig, ItemTrie, TrainingConfig, train_supervised
from sgrec_core.generator.packing import Batch, Packing, Windows
from sgrec_core.generator.training import GRADIENT_NORM, optimiser_of, packed_loss

# "card" is for a GPU: wide enough for its matrix units, with a batch that fills them.
SIZES = {
    "default": {"width": 128, "layers": 2, "heads": 4, "batch_size": 128},
    "card": {"width": 1024, "layers": 12, "heads": 16, "batch_size": 4096},
}
TRAINING = TrainingConfig(
    epochs=1, batch_size=128, learning_rate=1e-3, weight_decay=0.1, label_smoothing=0.0, bfloat16=True, seed=0
)
WAYS = ("packed", "padded, by length", "padded, random", "packed, with item head")
"""The last as a night trains; the others, codes alone, compare with each other."""
PACKED = ("packed", "packed, with item head")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer windows and repetitions")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the public sets")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--size", default="default", choices=sorted(SIZES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--output", type=Path, help="folder of the results; benchmarks/results by default")
    parser.add_argument("--peak-of", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    batch_size = int(SIZES[options.size]["batch_size"])
    steps = 8 if options.short else 64
    repetitions = options.repetitions or (2 if options.short else 5)

    source = data.scientific_or_random(options.data)
    trie, windows = source.trie, source.windows()
    if options.peak_of:
        model = generator(trie, options.size, options.device, options.peak_of)
        # Eight steps reach the peak.
        print(json.dumps(peak_bytes(model, trie, some(windows, 8 * batch_size), batch_size, options.peak_of)))
        return
    measured = some(windows, steps * batch_size)
    tokens = int((measured.items >= 0).sum()) * trie.levels

    # As a night trains: compiled on a GPU.
    compiled = ", compiled" if options.device == "cuda" else ""
    rates: dict[str, list[float]] = {way: [] for way in (*WAYS, *(way + compiled for way in PACKED))}
    models = {way: generator(trie, options.size, options.device, way) for way in rates}
    ceilings = []
    for way, model in models.items():  # allocator, kernels, compilation
        seconds_of(model, trie, some(windows, 2 * batch_size), batch_size, way)
    model = models["packed"]
    for _ in range(repetitions):
        ceilings.append(ceiling(model.config, batch_size * tokens // len(measured.items), options.device))
        for way, values in rates.items():
            values.append(tokens / seconds_of(models[way], trie, measured, batch_size, way))
    flops = {way: epoch_flops(models[way].config, measured) / tokens for way in PACKED}
    utilisation = {
        way: [rate * flops[way] / limit for rate, limit in zip(rates[way + compiled], ceilings, strict=True)]
        for way in PACKED
    }

    claims = [claim(f"training tokens per second, {way}", values, "tokens/s") for way, values in rates.items()]
    for way in WAYS[1:]:
        ratio = [ours / theirs for ours, theirs in zip(rates["packed"], rates[way], strict=True)]
        claims.append(claim(f"packed against {way}", ratio, "times", goal=None if way in PACKED else 1.0))
    claims.append(claim("ceiling of the machine on the step's matrix products", [c / 1e9 for c in ceilings], "GFLOP/s"))
    goal = 0.4 if options.device == "cuda" and options.size == "card" else None
    for way, shares in utilisation.items():
        claims.append(claim(f"FLOPs utilisation of training, {way}{compiled}", shares, "of the ceiling", goal))
    everywhere = epoch_flops(model.config, windows)
    sliding = epoch_flops(model.config, sliding_windows(windows))
    claims.append(claim("FLOPs of an epoch, every position a target", [everywhere / 1e9], "GFLOP"))
    claims.append(claim("FLOPs of an epoch, one sliding window a target", [sliding / 1e9], "GFLOP"))
    claims.append(claim("sliding windows against every position", [sliding / everywhere], "times", goal=1.0))
    peaks = {way: peak_in_fresh_process(options, way) for way in WAYS}
    for way, peak in peaks.items():
        claims.append(claim(f"peak memory of training, {way}", [peak / 2**20], "MiB"))

    parameters = sum(parameter.numel() for parameter in model.parameters())
    tokens = int((windows.items >= 0).sum()) * trie.levels
    text = f"""
{source.name}: {len(windows.items)} windows with {windows.targets} targets and {tokens} tokens, of which
{len(measured.items)} were measured. Generator of {model.config.layers} layers of width {model.config.width},
{parameters:,} parameters without the item head, dropout {model.config.dropout}, bfloat16, {batch_size} windows of mean
length a step, {options.threads} thread(s) on {options.device}. FLOPs are counted from shapes: two for each
multiplication with its addition, the backward pass as two forward ones, attention within the causal triangle, embedding
look-ups and elementwise work as nothing; the item head is a product of each position before a target with the whole
catalogue. Padding goes through all of the model but the loss; "by length" sorts windows within pools of 16 batches. On
a CPU peak memory is what training adds to the process, on a GPU what torch allocates.
Intervals are the range over {repetitions} alternating repetitions.
"""
    details = {
        "tokens_per_second": rates,
        "ceilings": ceilings,
        "flops_per_token": flops,
        "peak_bytes": peaks,
        "config": model.config.as_json(),
        "batch_size": batch_size,
        "threads": options.threads,
        "source": source.name,
    }
    name = "training" + ("" if options.size == "default" else f"-{options.size}") + ("-short" if options.short else "")
    where = {} if options.output is None else {"folder": options.output}
    print(write(name, claims, seeds=[0], text=text, details=details, **where).read_text())


def claim(name: str, values: list[float], unit: str, goal: float | None = None) -> Claim:
    """Median and range of ``values``; with a goal, to be above it."""
    middle = float(np.median(values))
    return Claim(
        name=name,
        value=middle,
        interval=(min(values), max(values)) if len(values) > 1 else None,
        unit=unit,
        goal="" if goal is None else f"> {goal:g}",
        met=None if goal is None else middle > goal,
    )


def generator(trie: ItemTrie, size: str, device: str, way: str) -> Generator:
    torch.manual_seed(0)
    shape = {name: int(SIZES[size][name]) for name in ("width", "layers", "heads")}
    if "item head" in way:
        shape["items"] = trie.items
    config = GeneratorConfig(
        levels=trie.levels, codebook_size=trie.codebook_size, max_items=data.MAX_HISTORY, dropout=0.2, **shape
    )
    model = Generator(config).to(device)
    model.align(trie)
    return model


def some(windows: Windows, count: int) -> Windows:
    """``count`` windows drawn at random, repeatedly where there are fewer."""
    draws = np.random.default_rng(1)
    rows = np.concatenate(
        [draws.permutation(len(windows.items)) for _ in range(math.ceil(count / len(windows.items)))]
    )[:count]
    return Windows(windows.items[rows], windows.first_target[rows])


def sliding_windows(windows: Windows) -> Windows:
    """One window for each target: it and the history before it, up to the longest that there is."""
    lengths = (windows.items >= 0).sum(axis=1)
    pieces = [
        row[: end + 1]
        for row, first, length in zip(windows.items, windows.first_target, lengths, strict=True)
        for end in range(first, length)
    ]
    items = np.full((len(pieces), windows.items.shape[1]), -1, dtype=np.int32)
    for row, piece in zip(items, pieces, strict=True):
        row[: len(piece)] = piece
    return Windows(items, np.array([len(piece) - 1 for piece in pieces], dtype=np.int32))


def products(config: GeneratorConfig) -> list[tuple[int, int, int]]:
    """(inner, outer, times) of the matrix products that every token goes through, except attention's own."""
    inner = 8 * config.width // 3 // 8 * 8
    layer = [
        (config.width, 3 * config.width, config.layers),
        (config.width, config.width, config.layers),
        (config.width, 2 * inner, config.layers),
        (inner, config.width, config.layers),
    ]
    return [*layer, (config.width, config.codebook_size, 1)]


def epoch_flops(config: GeneratorConfig, windows: Windows) -> float:
    """Operations of training once on ``windows``, padding left out."""
    tokens = (windows.items >= 0).sum(axis=1).astype(float) * config.levels
    matrices = 2 * tokens.sum() * sum(inner * outer * times for inner, outer, times in products(config))
    # Scores and mixture, each 2 x width for a pair of tokens of the causal triangle.
    attention = 4 * config.width * config.layers * (tokens * (tokens + 1) / 2).sum()
    of_items = 2 * windows.targets * config.width * config.items
    return 3 * (matrices + attention + of_items)


def ceiling(config: GeneratorConfig, tokens: int, device: str) -> float:
    """Operations per second of the step's matrix products on ``tokens`` tokens, in bfloat16."""
    operands = []
    for inner, outer, times in products(config):
        x, w, y = (
            torch.randn(shape, device=device).bfloat16() for shape in ((tokens, inner), (inner, outer), (tokens, outer))
        )
        operands += [(x, w, y)] * times

    def step() -> None:
        for x, w, y in operands:
            x @ w
            y @ w.T
            x.T @ y

    seconds = []
    for _ in range(8):
        begin = time.perf_counter()
        step()
        synchronise(device)
        seconds.append(time.perf_counter() - begin)
    operations = 6 * tokens * sum(inner * outer * times for inner, outer, times in products(config))
    return operations / float(np.median(seconds[2:]))


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(model: Generator, trie: ItemTrie, windows: Windows, batch_size: int, way: str) -> float:
    """Wall time of one epoch over ``windows``."""
    device = model.device.type
    synchronise(device)
    begin = time.perf_counter()
    if way.startswith("packed"):
        config = replace(TRAINING, batch_size=batch_size, compile="compiled" in way)
        train_supervised(model, trie, windows, config)
    else:
        train_padded(model, trie, windows, batch_size, by_length=way.endswith("length"))
    synchronise(device)
    return time.perf_counter() - begin


def train_padded(model: Generator, trie: ItemTrie, windows: Windows, batch_size: int, *, by_length: bool) -> None:
    """An epoch of the same training on batches of ``batch_size`` windows, each padded to its longest.

    Padding is packed as items that nothing predicts, so that the ways differ in nothing but padding.
    """
    trie = trie.to(model.device)
    optimiser = optimiser_of(model, TRAINING.learning_rate, TRAINING.weight_decay)
    lengths = (windows.items >= 0).sum(axis=1)
    model.train()
    for rows in padded_batches(lengths, batch_size, by_length):
        items = windows.items[rows, : lengths[rows].max()].astype(np.int64)
        target = (items >= 0) & (np.arange(items.shape[1]) >= windows.first_target[rows, None])
        batch = Batch(
            torch.from_numpy(items.clip(min=0).ravel()).to(model.device),
            torch.from_numpy(target.ravel()).to(model.device),
            Packing.of(np.full(len(items), items.shape[1]), model.device),
        )
        with torch.autocast(model.device.type, torch.bfloat16):
            loss = packed_loss(model, trie, batch, 0.0) / (target.sum() * trie.levels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimiser.step()
        loss.item()


def padded_batches(lengths: np.ndarray, batch_size: int, by_length: bool) -> Iterator[np.ndarray]:
    order = np.random.default_rng(0).permutation(len(lengths))
    pool = 16 * batch_size if by_length else batch_size
    for start in range(0, len(order), pool):
        rows = order[start : start + pool]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        yield from (rows[at : at + batch_size] for at in range(0, len(rows), batch_size))


def peak_bytes(model: Generator, trie: ItemTrie, windows: Windows, batch_size: int, way: str) -> int:
    """What training needs beyond the model and the data that are there already."""
    if model.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        seconds_of(model, trie, windows, batch_size, way)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # Linux forgets the peak so far
    before = peak_resident()
    seconds_of(model, trie, windows, batch_size, way)
    return peak_resident() - before


def peak_resident() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def peak_in_fresh_process(options: argparse.Namespace, way: str) -> int:
    command = [sys.executable, "-m", "benchmarks.training", "--peak-of", way, "--data", str(options.data)]
    command += ["--device", options.device, "--size", options.size, "--threads", str(options.threads)]
    return int(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


if __name__ == "__main__":
    main()
