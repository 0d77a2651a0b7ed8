"""The shape of a generator."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Shape of a generator; plain JSON through `as_json` and `GeneratorConfig(**json)`."""

    levels: int
    """Codes per item."""
    codebook_size: int
    """Codes of each level are in [0, codebook_size)."""
    width: int
    layers: int
    heads: int
    max_items: int
    """Longest history in items; older items are cut."""
    dropout: float
    items: int = 0
    """Items that the item head knows; 0: no item head."""
    item_weight: float = 0.0
    """Weight of item head and memory in the policy, that of the codes' logits being the rest; 0 leaves them out."""
    followers: int = 0
    """Followers of each item that the memory of transitions keeps; 0: no memory. It needs an item head beside it."""
    memory_weight: float = 0.0
    """Weight of the memory in what the policy expects of items, that of the item head being 1 - ``memory_weight``."""

    language_model: dict[str, Any] | None = None
    """As JSON, what `LanguageModel` is built from, where that reads the histories and not our transformer."""

    def __post_init__(self) -> None:
        if self.language_model is None and self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of 2 x heads = {2 * self.heads}")
        for name in ("levels", "codebook_size", "layers", "max_items"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("items", "followers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        for name in ("item_weight", "memory_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], not {getattr(self, name)}")
        if self.followers and not self.items:
            raise ValueError(
                f"followers is {self.followers}, and there is no item head beside which a memory could stand"
            )

    @property
    def vocabulary(self) -> int:
        """BOS and one range of codes for each level."""
        return 1 + self.levels * self.codebook_size

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``config.json``."""
        return asdict(self)
