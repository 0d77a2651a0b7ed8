"""Training in a folder of its own: on a bare GPU machine, or in several processes.

    python -m sgrec_core.generator.processes WORK
    torchrun --nproc-per-node 8 -m sgrec_core.generator.processes WORK

needs torch, numpy and safetensors. `write_inputs` fills WORK with ``inputs.safetensors`` (codes, windows, starting
weights) and ``config.json``; the command leaves ``weights.safetensors`` and ``losses.json``. Checkpoints lie in
``checkpoints/``: the same command goes on from the newest one. Each step prints a line of JSON.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from sgrec_core.errors import InputError
from sgrec_core.generator.checkpoints import Checkpoints
from sgrec_core.generator.config import GeneratorConfig
from sgrec_core.generator.model import Generator
from sgrec_core.generator.packing import Windows
from sgrec_core.generator.training import TrainingConfig, train_supervised
from sgrec_core.generator.trie import ItemTrie

INPUTS, CONFIG, WEIGHTS, LOSSES = "inputs.safetensors", "config.json", "weights.safetensors", "losses.json"


def write_inputs(
    work: Path, model: Generator, trie: ItemTrie, windows: Windows, config: TrainingConfig, *, checkpoint_every: int
) -> None:
    """Write what `main` needs to train ``model`` into the folder ``work``; results of an earlier training go."""
    from safetensors.torch import save_file

    work.mkdir(parents=True, exist_ok=True)
    for result in (WEIGHTS, LOSSES):
        (work / result).unlink(missing_ok=True)
    tensors = {f"weight/{name}": tensor.cpu() for name, tensor in model.tensors().items()}
    tensors["codes"] = trie.codes.cpu()
    tensors["items"] = torch.from_numpy(windows.items)
    tensors["first_target"] = torch.from_numpy(windows.first_target)
    save_file(tensors, work / INPUTS)
    settings = {
        "codebook_size": trie.codebook_size,
        "generator": model.config.as_json(),
        "training": asdict(config),
        "checkpoint_every": checkpoint_every,
    }
    (work / CONFIG).write_text(json.dumps(settings, indent=1) + "\n")


def read_results(work: Path, model: Generator) -> list[float]:
    """Put the trained weights into ``model``; the mean loss of each epoch.

    Raises:
        InputError: the training in ``work`` has not finished.
    """
    from safetensors.torch import load_file

    if not (work / LOSSES).exists():
        raise InputError(f"{work} holds no finished training; run `python -m sgrec_core.generator.processes {work}`")
    model.load_tensors(load_file(work / WEIGHTS, device=str(model.device)))
    return json.loads((work / LOSSES).read_text())


def train_in_processes(
    work: Path, processes: int, *, threads: int, progress: Callable[[int, float], None] | None = None
) -> None:
    """Run the training of folder ``work`` in ``processes`` processes of this machine, ``threads`` threads in all.

    They end when the calling process does, however that ends.

    Raises:
        RuntimeError: one failed; what it said stands on standard error.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", __name__, str(work.resolve()), "--parent", str(os.getpid())]
    project = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, threads // processes))}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [project, os.environ.get("PYTHONPATH")]))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None
        for line in run.stdout:
            try:
                step = json.loads(line)
                count, loss = step["windows"], step["loss"]
            except (ValueError, TypeError, KeyError):
                print(line, end="", file=sys.stderr)
                continue
            if progress is not None:
                progress(count, loss)
    if run.returncode:
        raise RuntimeError(f"training in {work} by {processes} processes failed with exit code {run.returncode}")


def main(arguments: list[str] | None = None) -> None:
    """Train what lies in a folder; under torchrun, as one of its processes."""
    parser = argparse.ArgumentParser(prog="python -m sgrec_core.generator.processes", description="Train a generator.")
    parser.add_argument("work", type=Path, help="folder with inputs.safetensors and config.json; results go there")
    parser.add_argument("--parent", type=int, help="stop when the process with this number has ended")
    options = parser.parse_args(arguments)
    from safetensors.torch import load_file, save_file

    if not (options.work / CONFIG).exists():
        parser.error(f"{options.work / CONFIG} does not exist; sgrec_core.generator.processes.write_inputs makes it")
    settings: dict[str, Any] = json.loads((options.work / CONFIG).read_text())
    tensors = load_file(options.work / INPUTS)

    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    first = not dist.is_initialized() or dist.get_rank() == 0

    model = Generator(GeneratorConfig(**settings["generator"]))
    model.load_tensors({name[7:]: tensor for name, tensor in tensors.items() if name.startswith("weight/")})
    trie = ItemTrie.build(tensors["codes"], settings["codebook_size"])
    windows = Windows(tensors["items"].numpy(), tensors["first_target"].numpy().astype(np.int32))

    def step(count: int, loss: float) -> None:
        if options.parent is not None and not _alive(options.parent):
            raise SystemExit(f"process {options.parent}, for which this training ran, has ended")
        if first:
            print(json.dumps({"windows": count, "loss": loss}), flush=True)

    losses = train_supervised(
        model.to(device),
        trie,
        windows,
        TrainingConfig(**settings["training"]),
        checkpoints=Checkpoints(options.work / "checkpoints", settings["checkpoint_every"]),
        progress=step,
    )
    if first:
        save_file({name: tensor.cpu() for name, tensor in model.tensors().items()}, options.work / WEIGHTS)
        # The losses come last and in one step: where they are, the weights are whole.
        unfinished = options.work / f"{LOSSES}.{os.getpid()}"
        unfinished.write_text(json.dumps(losses) + "\n")
        unfinished.replace(options.work / LOSSES)
    if dist.is_initialized():
        dist.destroy_process_group()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    main()
