"""Which tokenizer a night uses: the one that a night before fitted for the same source and settings, or its own."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sgrec_core.errors import SgrecError
from sgrec_core.generator.device import device, use_threads
from sgrec_core.hashing import digest
from sgrec_core.items import TextEncoder
from sgrec_core.items.tokenizer import Kind, fit_tokenizer
from sgrec_core.registry import CODE_TAG, ModelVersion, Registry
from sgrec_core.registry.nights import night_alias
from sgrec_core.runtime.job import Job
from sgrec_core.runtime.stages import TOKENIZER


def find_or_fit(
    job: Job, registry: Registry, kind: Kind, items: Sequence[Mapping[str, Any]], encoder: TextEncoder
) -> ModelVersion:
    """The tokenizer of the night of ``job``; fitted to ``items`` (rows of the day) if no night has done so."""
    settings = job.settings.items
    # No part of the fingerprint is of the day: whoever comes first fits it. None is of the code: what is fitted stays.
    parts = {"kind": kind, "source": job.settings.source}
    if kind == "text":
        parts |= {"encoder": encoder.version, "settings": settings.model_dump_json(exclude={"codes"})}
    fingerprint = digest("tokenizer", json.dumps(parts, sort_keys=True), length=32)
    version = registry.find(TOKENIZER, fingerprint)
    if version is None:
        use_threads(job.settings.threads)
        tokenizer = fit_tokenizer(kind, items, settings, encoder, device=device(), progress=job.progress)
        facts = tokenizer.diagnostics
        version = registry.register(
            TOKENIZER,
            day=job.day,
            fingerprint=fingerprint,
            tensors=tokenizer.tensors(),
            config=tokenizer.config(),
            metrics={
                "collision": facts["collision"],
                "sharing": facts["sharing"],
                **{f"perplexity_{level}": value for level, value in enumerate(facts["perplexity"])},
            },
            parameters={
                "kind": kind,
                **({"quantiser": settings.quantiser, "resolver": settings.resolver} if kind == "text" else {}),
                "levels": tokenizer.levels,
                "codebook_size": tokenizer.codebook_size,
                "items": len(items),
            },
            tables={"items": job.lake.version("items")},
            tags={"sgrec.tokenizer_version": tokenizer.version, CODE_TAG: job.code_digest},
        )
    registry.set_alias(version, night_alias(job.day))
    return version


def current_tokenizer(registry: Registry, day: str) -> tuple[str, dict[str, Any]]:
    """The tokenizer that night ``day`` uses: its ``tokenizer_version``, the partition of item_codes, and its config.

    The config has `kind` (text or supplied), `levels` and `codebook_size`. A tokenizer is fitted once for a source and
    its item settings, by whichever night came first, also when an earlier day is backfilled later.

    Raises:
        SgrecError: the night has not coded its items yet.
    """
    number = registry.aliases(TOKENIZER).get(night_alias(day))
    if number is None:
        raise SgrecError(f"night {day} has no {TOKENIZER}; run `python -m jobs.tokenize_items --day {day}` first")
    _, config = registry.load(registry.get(TOKENIZER, number))
    return config["tokenizer_version"], config
