"""What gives items their semantic ids: fitted once on a catalogue, asked for the codes of new items ever after.

Codes come from item text, by a quantiser of embeddings with a resolver of collisions, or with the catalogue. Both kinds
answer to `Tokenizer`; `fit_tokenizer` makes one and `load_tokenizer` brings it back.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch

from sgrec_core.errors import InputError
from sgrec_core.hashing import digest
from sgrec_core.items.codes import Codes, Resolver, assign_codes, id_shape, resolve_supplied_codes
from sgrec_core.items.diagnostics import diagnostics
from sgrec_core.items.encoder import TextEncoder, item_text
from sgrec_core.items.fitting import fit_quantiser
from sgrec_core.items.quantiser import Quantiser
from sgrec_core.settings import ItemSettings

SMALLEST_SUPPLIED_CODEBOOK = 256
"""Later nights may bring larger supplied codes than the first one showed."""

Kind = Literal["text", "supplied"]
"""Where codes come from."""
Items = Sequence[Mapping[str, Any]]
"""Rows of the table ``items``."""
Progress = Callable[..., Iterable[Any]]
"""Wraps long loops, as in `TextEncoder.encode`."""


@dataclass(frozen=True, eq=False)
class Wanted:
    """The codes that N items would have if nobody else had them."""

    item_ids: list[str]
    codes: list[Codes | None]
    """None for an item of which nothing is known."""
    vectors: np.ndarray | None = None
    """float32 [N, d]: what a quantiser weighs items against each other by."""


class Tokenizer(Protocol):
    """A fitted tokenizer; its class has ``fit`` and ``load``."""

    kind: ClassVar[Kind]

    @property
    def version(self) -> str:
        """Digest of what decides codes: the partition of ``item_codes``."""

    @property
    def levels(self) -> int:
        """Codes of an item."""

    @property
    def codebook_size(self) -> int:
        """Codes of a level."""

    @property
    def diagnostics(self) -> dict[str, Any]:
        """How the codes were spread over the catalogue at the fit (`sgrec_core.items.diagnostics`)."""

    def encode(self, items: Items, progress: Progress | None = None) -> Wanted:
        """The codes of ``items`` before collisions are resolved."""

    def resolve(self, wanted: Wanted, taken: Mapping[str, Sequence[int]]) -> dict[str, Codes]:
        """A tuple of its own for each item; those in ``taken`` (item -> codes) keep theirs and are not returned.

        Raises:
            InputError: codes of another form than this tokenizer's, or more items than tuples.
        """

    def tensors(self) -> dict[str, torch.Tensor]:
        """For safetensors; `load_tokenizer` builds the same tokenizer from these and `config`."""

    def config(self) -> dict[str, Any]:
        """For JSON."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TextTokenizer:
    """Codes from item text."""

    kind: ClassVar[Kind] = "text"
    encoder: TextEncoder
    quantiser: Quantiser
    resolver: Resolver
    version: str
    levels: int
    codebook_size: int
    diagnostics: dict[str, Any]

    @classmethod
    def fit(
        cls,
        items: Items,
        settings: ItemSettings,
        encoder: TextEncoder,
        *,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> "TextTokenizer":
        """The quantiser that ``settings`` name, of the texts of ``items``; see `fit_quantiser`."""
        embeddings = encoder.encode(item_texts(items), progress=progress)
        quantiser = fit_quantiser(
            settings.quantiser,
            embeddings,
            settings.levels,
            settings.codebook_size,
            settings.seed,
            device=device,
            progress=progress,
        )
        codes = quantiser.encode(embeddings)
        levels, size = id_shape(quantiser, settings.resolver, codes)
        tensors, made_by = quantiser.tensors(), _made_by(quantiser, settings.resolver)
        # What decides codes is in the version, the resolver too: other ids must not share a partition.
        arrays = [(name, tensors[name].numpy().tobytes().hex()) for name in sorted(tensors)]
        return cls(
            encoder=encoder,
            quantiser=quantiser,
            resolver=settings.resolver,
            version=digest(encoder.version, json.dumps(made_by, sort_keys=True), size, *arrays),
            levels=int(levels),
            codebook_size=int(size),
            diagnostics=diagnostics(codes, quantiser.codebook_size),
        )

    @classmethod
    def load(
        cls, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], encoder: TextEncoder
    ) -> "TextTokenizer":
        return cls(
            encoder=encoder,
            quantiser=Quantiser.load(tensors, config["quantiser"]),
            resolver=config["resolver"],
            version=config["tokenizer_version"],
            levels=config["levels"],
            codebook_size=config["codebook_size"],
            diagnostics=config["diagnostics"],
        )

    def encode(self, items: Items, progress: Progress | None = None) -> Wanted:
        embeddings = self.encoder.encode(item_texts(items), progress=progress)
        codes: list[Codes | None] = [tuple(codes) for codes in self.quantiser.encode(embeddings).tolist()]
        return Wanted([item["item_id"] for item in items], codes, embeddings)

    def resolve(self, wanted: Wanted, taken: Mapping[str, Sequence[int]]) -> dict[str, Codes]:
        assert wanted.vectors is not None
        return assign_codes(
            wanted.item_ids,
            wanted.vectors,
            self.quantiser,
            taken,
            resolver=self.resolver,
            codebook_size=self.codebook_size,
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        return self.quantiser.tensors()

    def config(self) -> dict[str, Any]:
        return {**_shared_config(self, self.encoder.version), **_made_by(self.quantiser, self.resolver)}


@dataclass(frozen=True, kw_only=True, eq=False)
class SuppliedTokenizer:
    """Codes that came with the catalogue (column ``supplied_codes``)."""

    kind: ClassVar[Kind] = "supplied"
    codes_at_fit: np.ndarray
    """int32 [N, L]."""
    version: str
    levels: int
    codebook_size: int
    diagnostics: dict[str, Any]

    @classmethod
    def fit(cls, items: Items, settings: ItemSettings) -> "SuppliedTokenizer":
        """The form of the codes that ``items`` bring; of the settings where they bring none.

        Raises:
            InputError: tuples of different lengths.
        """
        supplied = {item["item_id"]: item["supplied_codes"] for item in items if item["supplied_codes"] is not None}
        levels, size = _supplied_shape(supplied, settings.levels, len(items))
        codes = np.array(list(supplied.values()), dtype=np.int32).reshape(-1, levels)
        return cls(
            codes_at_fit=codes,
            version=f"supplied-{digest(levels, size, json.dumps(supplied, sort_keys=True))}",
            levels=int(levels),
            codebook_size=int(size),
            diagnostics=diagnostics(codes, size),
        )

    @classmethod
    def load(cls, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> "SuppliedTokenizer":
        return cls(
            codes_at_fit=tensors["codes_at_fit"].numpy(),
            version=config["tokenizer_version"],
            levels=config["levels"],
            codebook_size=config["codebook_size"],
            diagnostics=config["diagnostics"],
        )

    def encode(self, items: Items, progress: Progress | None = None) -> Wanted:
        supplied = [item["supplied_codes"] for item in items]
        codes = [None if codes is None else tuple(codes) for codes in supplied]
        return Wanted([item["item_id"] for item in items], codes)

    def resolve(self, wanted: Wanted, taken: Mapping[str, Sequence[int]]) -> dict[str, Codes]:
        return resolve_supplied_codes(
            wanted.item_ids, wanted.codes, taken, levels=self.levels, codebook_size=self.codebook_size
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"codes_at_fit": torch.from_numpy(self.codes_at_fit)}

    def config(self) -> dict[str, Any]:
        return _shared_config(self, None)


def kind_of_codes(setting: Literal["auto", "text", "supplied"], items: int, with_text: int) -> Kind:
    """Where the codes of a catalogue come from; ``auto``: from text where at least half of the items have some.

    Raises:
        InputError: from text, but no item has any.
    """
    kind: Kind = setting if setting != "auto" else ("text" if 2 * with_text >= items else "supplied")
    if kind == "text" and with_text == 0:
        raise InputError(f"items.codes=text, but none of the {items} items has text; use supplied or auto")
    return kind


def fit_tokenizer(
    kind: Kind,
    items: Items,
    settings: ItemSettings,
    encoder: TextEncoder,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Tokenizer:
    """A tokenizer fitted to the catalogue ``items``."""
    if kind == "supplied":
        return SuppliedTokenizer.fit(items, settings)
    return TextTokenizer.fit(items, settings, encoder, device=device, progress=progress)


def load_tokenizer(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], encoder: TextEncoder) -> Tokenizer:
    """The tokenizer that its ``tensors()`` and ``config()`` describe, with the ``encoder`` of its fit."""
    if config["kind"] == "supplied":
        return SuppliedTokenizer.load(tensors, config)
    return TextTokenizer.load(tensors, config, encoder)


def item_texts(items: Items) -> list[str]:
    """What the encoder reads of each item; empty where it has no text."""
    return [item_text(item["title"], item["brand"], item["category"], item["description"]) for item in items]


def _shared_config(tokenizer: Tokenizer, encoder: str | None) -> dict[str, Any]:
    return {
        "kind": tokenizer.kind,
        "tokenizer_version": tokenizer.version,
        "encoder": encoder,
        "levels": tokenizer.levels,
        "codebook_size": tokenizer.codebook_size,
        "diagnostics": tokenizer.diagnostics,
    }


def _made_by(quantiser: Quantiser, resolver: Resolver) -> dict[str, Any]:
    return {"quantiser": quantiser.config(), "resolver": resolver}


def _supplied_shape(supplied: Mapping[str, Sequence[int]], levels: int, items: int) -> tuple[int, int]:
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
