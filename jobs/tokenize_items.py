"""Give each item of the day a collision-free semantic id.

The tokenizer is fitted once, on the first night's catalogue, for a source and its item settings: a quantiser of text
embeddings with a resolver of collisions, or, where most items have no text, the codes that came with the catalogue.
Later nights append codes for items that are new and change none: the generator has learnt them, also when an item's
text changes.
"""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from sgrec_core.errors import InputError
from sgrec_core.generator.device import device, use_threads
from sgrec_core.hashing import digest
from sgrec_core.items import TextEncoder, embeddings_cache, item_text
from sgrec_core.items.codes import Codes, assign_codes, id_shape, resolve_supplied_codes
from sgrec_core.items.diagnostics import diagnostics
from sgrec_core.items.fitting import fit_quantiser
from sgrec_core.items.quantiser import Quantiser
from sgrec_core.registry import CODE_TAG, ModelVersion, Registry
from sgrec_core.runtime.job import Job, stage_command
from sgrec_core.runtime.stages import TOKENIZER

SMALLEST_SUPPLIED_CODEBOOK = 256
"""Later nights may bring larger supplied codes than the first one showed."""


def run(job: Job) -> None:
    items = job.lake.read("items", where={"day": job.day}).to_pylist()
    if not items:
        raise InputError(f"items of {job.day}: no rows; run `python -m jobs.ingest_events --day {job.day}` first")
    texts = [item_text(item["title"], item["brand"], item["category"], item["description"]) for item in items]
    kind = _kind(job, items, texts)
    encoder = TextEncoder(embeddings_cache(job.settings), threads=job.settings.threads)
    registry = Registry(job.settings)
    tokenizer = _find_or_fit(job, registry, encoder, kind, items, texts)
    registry.set_alias(tokenizer, f"night-{job.day}")

    tensors, config = registry.load(tokenizer)
    version = config["tokenizer_version"]
    coded = job.lake.read("item_codes", where={"tokenizer_version": version}, columns=["item_id", "codes"])
    taken = dict(zip(coded["item_id"].to_pylist(), coded["codes"].to_pylist(), strict=True))
    rows = [row for row, item in enumerate(items) if item["item_id"] not in taken]
    if not rows and not job.force:
        # Codes never change, so there is nothing to compute again either.
        job.keep_facts()
        return
    new = [items[row] for row in rows]
    wanted: list[Codes | None]
    if kind == "text":
        embeddings = encoder.encode([texts[row] for row in rows], progress=job.progress)
        quantiser = Quantiser.load(tensors, config["quantiser"])
        wanted = [tuple(codes) for codes in quantiser.encode(embeddings).tolist()]
        codes = assign_codes(
            [item["item_id"] for item in new],
            embeddings,
            quantiser,
            taken,
            resolver=config["resolver"],
            codebook_size=config["codebook_size"],
        )
    else:
        supplied = [item["supplied_codes"] for item in new]
        wanted = [None if codes is None else tuple(codes) for codes in supplied]
        codes = resolve_supplied_codes(
            [item["item_id"] for item in new],
            supplied,
            taken,
            levels=config["levels"],
            codebook_size=config["codebook_size"],
        )
        if without := wanted.count(None):
            job.note(
                f"{without} items have neither text nor supplied codes: theirs are hashes of their ids, without meaning"
            )
    _append(job, version, new, codes, wanted)

    # A resolver may add a code; an item has moved when those that it wanted are others.
    moved = sum(w is not None and codes[item["item_id"]][: len(w)] != w for item, w in zip(new, wanted, strict=True))
    job.fact("items", len(items))
    job.fact("new_items", len(new))
    job.fact("moved_by_collisions", moved)
    job.fact("moved_share", round(moved / len(new), 4) if new else 0.0)
    job.fact("tokenizer_version", version)
    job.fact("codes", f"{config['levels']} levels of {config['codebook_size']}, from {kind}")
    for name, value in config["diagnostics"].items():
        job.fact(f"at_fit_{name}", value)


def _kind(job: Job, items: list[dict[str, Any]], texts: list[str]) -> str:
    """Where codes come from: ``text`` or ``supplied``."""
    with_text = sum(map(bool, texts))
    wanted = job.settings.items.codes
    kind = wanted if wanted != "auto" else ("text" if 2 * with_text >= len(items) else "supplied")
    if kind == "text" and with_text == 0:
        raise InputError(
            f"items.codes=text, but none of the {len(items)} items of {job.day} has text; use supplied or auto"
        )
    if kind == "text" and with_text < len(items):
        job.note(f"{len(items) - with_text} of {len(items)} items have no text: their semantic ids mean nothing")
    if kind == "supplied" and wanted == "auto":
        job.note(f"{with_text} of {len(items)} items have text: semantic ids are those supplied with the catalogue")
    return kind


def _find_or_fit(
    job: Job, registry: Registry, encoder: TextEncoder, kind: str, items: list[dict[str, Any]], texts: list[str]
) -> ModelVersion:
    """The tokenizer for these settings; fitted on today's catalogue if no night has done so."""
    settings = job.settings.items
    # No part of the fingerprint is of the day: whoever comes first fits it. None is of the code: what is fitted stays.
    parts = {"kind": kind, "source": job.settings.source}
    if kind == "text":
        parts |= {"encoder": encoder.version, "settings": settings.model_dump_json(exclude={"codes"})}
    fingerprint = digest("tokenizer", json.dumps(parts, sort_keys=True), length=32)
    found = registry.find(TOKENIZER, fingerprint)
    if found is not None:
        return found
    tensors: dict[str, torch.Tensor]
    made_by: dict[str, Any]
    if kind == "text":
        embeddings = encoder.encode(texts, progress=job.progress)
        use_threads(job.settings.threads)
        quantiser = fit_quantiser(
            settings.quantiser,
            embeddings,
            settings.levels,
            settings.codebook_size,
            settings.seed,
            device=device(),
            progress=job.progress,
        )
        codes = quantiser.encode(embeddings)
        facts = diagnostics(codes, quantiser.codebook_size)
        levels, size = id_shape(quantiser, settings.resolver, codes)
        tensors = quantiser.tensors()
        made_by = {"quantiser": quantiser.config(), "resolver": settings.resolver}
        # What decides codes is in the version, the resolver too: other ids must not share a partition.
        arrays = [(name, tensors[name].numpy().tobytes().hex()) for name in sorted(tensors)]
        version = digest(encoder.version, json.dumps(made_by, sort_keys=True), size, *arrays)
    else:
        supplied = {item["item_id"]: item["supplied_codes"] for item in items if item["supplied_codes"] is not None}
        levels, size = _supplied_shape(supplied, settings.levels, len(items))
        codes = np.array(list(supplied.values()), dtype=np.int32).reshape(-1, levels)
        facts = diagnostics(codes, size)
        tensors = {"codes_at_fit": torch.from_numpy(codes)}
        made_by = {}
        version = f"supplied-{digest(levels, size, json.dumps(supplied, sort_keys=True))}"
    config = {
        "kind": kind,
        "tokenizer_version": version,
        "encoder": encoder.version if kind == "text" else None,
        "levels": int(levels),
        "codebook_size": int(size),
        "diagnostics": facts,
        **made_by,
    }
    return registry.register(
        TOKENIZER,
        day=job.day,
        fingerprint=fingerprint,
        tensors=tensors,
        config=config,
        metrics={
            "collision": facts["collision"],
            "sharing": facts["sharing"],
            **{f"perplexity_{level}": value for level, value in enumerate(facts["perplexity"])},
        },
        parameters={
            "kind": kind,
            **({"quantiser": settings.quantiser, "resolver": settings.resolver} if kind == "text" else {}),
            "levels": levels,
            "codebook_size": size,
            "items": len(items),
        },
        tables={"items": job.lake.version("items")},
        tags={"sgrec.tokenizer_version": version, CODE_TAG: job.code_digest},
    )


def _supplied_shape(supplied: dict[str, list[int]], levels: int, items: int) -> tuple[int, int]:
    """Levels and codebook size of supplied codes; without any, of the settings and as large as it takes."""
    lengths = {len(codes): item for item, codes in sorted(supplied.items(), reverse=True)}
    if len(lengths) > 1:
        shown = "; ".join(f"item {item!r} has {length}" for length, item in sorted(lengths.items()))
        raise InputError(
            f"items, column supplied_codes: tuples of different lengths: {shown}; valid is one length for all"
        )
    levels = next(iter(lengths), levels)
    largest = max((code for codes in supplied.values() for code in codes), default=0)
    size = max(SMALLEST_SUPPLIED_CODEBOOK, 1 << int(largest).bit_length())
    while size**levels < 2 * items:
        size *= 2
    return levels, size


def _append(
    job: Job, version: str, new: list[dict[str, Any]], codes: dict[str, Codes], wanted: list[Codes | None]
) -> None:
    """Add the rows of the new items in one commit."""
    job.lake.upsert(
        "item_codes",
        pa.table(
            {
                "tokenizer_version": pa.array([version] * len(new), pa.string()),
                "item_id": pa.array([item["item_id"] for item in new], pa.string()),
                "item_hash": pa.array([item["item_hash"] for item in new], pa.string()),
                "codes": pa.array([codes[item["item_id"]] for item in new], pa.list_(pa.int32())),
                "wanted_codes": pa.array(wanted, pa.list_(pa.int32())),
            }
        ),
        metadata={"day": job.day, "tokenizer_version": version},
    )


main = stage_command("tokenize_items", run)

if __name__ == "__main__":
    main()
