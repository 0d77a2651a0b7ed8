"""Give each item of the day a collision-free semantic id.

The tokenizer is fitted once, on the first night's catalogue, for a source and its item settings: a quantiser of text
embeddings with a resolver of collisions, or, where most items have no text, the codes that came with the catalogue.
Later nights append codes for items that are new and change none: the generator has learnt them, also when an item's
text changes.
"""

from typing import Any

import pyarrow as pa

from sgrec_core.errors import InputError
from sgrec_core.items import TextEncoder, embeddings_cache
from sgrec_core.items.codes import Codes
from sgrec_core.items.tokenizer import Kind, item_texts, kind_of_codes, load_tokenizer
from sgrec_core.night.tokenizers import find_or_fit
from sgrec_core.registry import Registry
from sgrec_core.runtime.job import Job, stage_command


def run(job: Job) -> None:
    items = job.lake.read("items", where={"day": job.day}).to_pylist()
    if not items:
        raise InputError(f"items of {job.day}: no rows; run `python -m jobs.ingest_events --day {job.day}` first")
    kind = _kind(job, items)
    encoder = TextEncoder(embeddings_cache(job.settings), threads=job.settings.threads)
    registry = Registry(job.settings)
    tokenizer = load_tokenizer(*registry.load(find_or_fit(job, registry, kind, items, encoder)), encoder)

    coded = job.lake.read("item_codes", where={"tokenizer_version": tokenizer.version}, columns=["item_id", "codes"])
    taken = dict(zip(coded["item_id"].to_pylist(), coded["codes"].to_pylist(), strict=True))
    new = [item for item in items if item["item_id"] not in taken]
    if not new and not job.force:
        # Codes never change, so there is nothing to compute again either.
        job.keep_facts()
        return
    wanted = tokenizer.encode(new, job.progress)
    codes = tokenizer.resolve(wanted, taken)
    if without := wanted.codes.count(None):
        job.note(
            f"{without} items have neither text nor supplied codes: theirs are hashes of their ids, without meaning"
        )
    _append(job, tokenizer.version, new, codes, wanted.codes)

    # A resolver may add a code; an item has moved when those that it wanted are others.
    moved = sum(
        own is not None and codes[item][: len(own)] != own
        for item, own in zip(wanted.item_ids, wanted.codes, strict=True)
    )
    job.fact("items", len(items))
    job.fact("new_items", len(new))
    job.fact("moved_by_collisions", moved)
    job.fact("moved_share", round(moved / len(new), 4) if new else 0.0)
    job.fact("tokenizer_version", tokenizer.version)
    job.fact("codes", f"{tokenizer.levels} levels of {tokenizer.codebook_size}, from {kind}")
    for name, value in tokenizer.diagnostics.items():
        job.fact(f"at_fit_{name}", value)


def _kind(job: Job, items: list[dict[str, Any]]) -> Kind:
    """Where codes come from, with a note for the morning page."""
    wanted, with_text = job.settings.items.codes, sum(map(bool, item_texts(items)))
    kind = kind_of_codes(wanted, len(items), with_text)
    if kind == "text" and with_text < len(items):
        job.note(f"{len(items) - with_text} of {len(items)} items have no text: their semantic ids mean nothing")
    if kind == "supplied" and wanted == "auto":
        job.note(f"{with_text} of {len(items)} items have text: semantic ids are those supplied with the catalogue")
    return kind


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
