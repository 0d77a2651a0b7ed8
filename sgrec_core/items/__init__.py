"""Items: text encoding and semantic ids."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgrec_core.errors import SgrecError
from sgrec_core.items.encoder import TextEncoder, item_text

if TYPE_CHECKING:
    from sgrec_core.registry import Registry
    from sgrec_core.settings import Settings

__all__ = ["TOKENIZER", "TextEncoder", "current_tokenizer", "embeddings_cache", "item_text"]

TOKENIZER = "sgrec-tokenizer"


def current_tokenizer(registry: "Registry", day: str) -> tuple[str, dict[str, Any]]:
    """The tokenizer that night ``day`` uses: its ``tokenizer_version``, the partition of item_codes, and its config.

    The config has `kind` (text or supplied), `levels` and `codebook_size`. A tokenizer is fitted once for a source and
    its item settings, by whichever night came first, also when an earlier day is backfilled later.

    Raises:
        SgrecError: the night has not coded its items yet.
    """
    number = registry.aliases(TOKENIZER).get(f"night-{day}")
    if number is None:
        raise SgrecError(f"night {day} has no {TOKENIZER}; run `python -m jobs.tokenize_items --day {day}` first")
    _, config = registry.load(registry.get(TOKENIZER, number))
    return config["tokenizer_version"], config


def embeddings_cache(settings: "Settings") -> Path:
    """The folder that keeps text vectors between nights."""
    return settings.home.resolve() / "cache" / "embeddings"
