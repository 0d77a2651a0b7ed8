"""Items: text encoding and semantic ids."""

from pathlib import Path
from typing import TYPE_CHECKING

from sgrec_core.items.encoder import TextEncoder, item_text

if TYPE_CHECKING:
    from sgrec_core.settings import Settings

__all__ = ["TextEncoder", "embeddings_cache", "item_text"]


def embeddings_cache(settings: "Settings") -> Path:
    """The folder that keeps text vectors between nights."""
    return settings.home.resolve() / "cache" / "embeddings"
