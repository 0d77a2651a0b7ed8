"""Adapters of the judge's model in MLflow, and as folders that vLLM and PEFT load."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file

from sgrec_core.errors import SettingsError
from sgrec_core.judge.versions.adapters import Adapter, judge_folder, rubric_digest
from sgrec_core.registry import CODE_TAG, ModelVersion, Registry
from sgrec_core.runtime.job import Job
from sgrec_core.settings import JudgeSettings, Settings

if TYPE_CHECKING:
    from sgrec_core.judge.training.tuner import Tuner

MODEL_TAG = "sgrec.judge_model"
TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def check_trainable(settings: Settings) -> None:
    """Raise SettingsError where the judge is not of the kind that is trained: what is trained must be what is asked."""
    judge = settings.judge
    if judge.engine != "vllm" or judge.mode != "labels":
        raise SettingsError(
            "the judge's training needs SGREC_JUDGE__ENGINE=vllm and SGREC_JUDGE__MODE=labels, not"
            f" {judge.engine} and {judge.mode}"
        )


def model_tag(judge: JudgeSettings) -> str:
    """Which model an adapter is for, as a tag of its version."""
    return f"{judge.model}@{judge.revision}"


def trained_before(job: Job, registry: Registry, fingerprint: str) -> ModelVersion | None:
    """The adapter that the same training made before, with its figures as the job's facts; None with ``--force``."""
    (name,) = job.stage.registers
    version = registry.find(name, fingerprint)
    if version is None or job.force:
        return None
    # Of this version, which need not be the one that was trained last.
    _tell_figures(job, registry.metrics(version))
    job.keep_facts()
    return version


def register_adapter(
    job: Job, registry: Registry, tuner: "Tuner", fingerprint: str, figures: Mapping[str, float]
) -> ModelVersion:
    """Register the adapter that ``tuner`` has trained, with its figures as the job's facts.

    Where the same training (``--force``) was registered before, that version stands, with the figures of its weights.
    """
    judge = job.settings.judge
    (name,) = job.stage.registers
    with tempfile.TemporaryDirectory() as scratch:
        folder = tuner.save(Path(scratch))
        version = registry.register(
            name,
            day=job.day,
            fingerprint=fingerprint,
            tensors=load_file(folder / TENSORS),
            config={
                "kind": "lora_adapter",
                "model": judge.model,
                "revision": judge.revision,
                "rubric": rubric_digest(job.settings),
                "adapter": json.loads((folder / CONFIG).read_text()),
            },
            tags={MODEL_TAG: model_tag(judge), CODE_TAG: job.code_digest},
            metrics=figures,
            parameters=job.settings.judge_training.model_dump(),
            tables={table: job.lake.version(table) for table in job.stage.reads},
        )
    _tell_figures(job, registry.metrics(version))
    return version


def _tell_figures(job: Job, figures: Mapping[str, float]) -> None:
    for name, value in figures.items():
        job.fact(name, round(value, 4))


def lay_out(settings: Settings, registry: Registry, version: ModelVersion, day: str) -> Adapter:
    """The adapter of a registered version as a folder below ``<home>/judge``, as the training of ``day`` made it."""
    tensors, config = registry.load(version)
    adapter = Adapter(
        day=day,
        folder=f"{version.name}-{version.fingerprint[:12]}",
        model=config["model"],
        revision=config["revision"],
        rubric=config["rubric"],
        version=version.version,
    )
    folder = judge_folder(settings) / adapter.folder
    if not folder.exists():
        # Whole or not at all, and never written again: a night may be reading it.
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix="."))
        save_file(tensors, scratch / TENSORS, metadata={"format": "pt"})
        (scratch / CONFIG).write_text(json.dumps(config["adapter"], indent=1, sort_keys=True) + "\n")
        scratch.chmod(0o755)
        with contextlib.suppress(OSError):
            scratch.rename(folder)
        shutil.rmtree(scratch, ignore_errors=True)
    return adapter
