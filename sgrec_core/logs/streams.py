"""The bytes of a raw file, decompressed in bounded memory and however damaged; and how far they were read.

Compressed files are read stream by stream (a gzip member, a zstandard frame), so that a damaged one costs nothing of
those before it, and what stands behind the last is told instead of being taken for padding.
"""

import bz2
import codecs
import lzma
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from backports import zstd

from sgrec_core.logs.rows import BrokenOffError, Problem, Reading, UnreadableFileError

CHUNK = 1 << 16
HEAD = 4096
"""Bytes by which an encoding is known."""
PIECE = 1 << 12
"""Compressed bytes that are decoded at a time."""
COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstandard"}
MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
PADDED = ("gzip", "xz")
"""Kinds of which zeros between and behind streams are padding."""
MARK = b"\xef\xbb\xbf"
"""With which some programs begin UTF-8."""


class _Gzip:
    """A gzip member by the interface that the decompressors of the other kinds share."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)
        self._full = False

    def decompress(self, data: bytes, max_length: int) -> bytes:
        found = self._inner.decompress(self._inner.unconsumed_tail + data, max_length)
        self._full = len(found) == max_length
        return found

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._full and not self._inner.unconsumed_tail


_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "gzip": _Gzip,
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
    "zstandard": zstd.ZstdDecompressor,
}
_DAMAGED = (EOFError, OSError, ValueError, lzma.LZMAError, zlib.error, zstd.ZstdError)


def compression_of(name: str, head: bytes) -> str | None:
    """How a file is compressed, by its ending and else by its first bytes."""
    by_ending = COMPRESSIONS.get(Path(name.lower()).suffix)
    return by_ending or next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)


def chunks(path: Path, compression: str | None, reading: Reading) -> Iterator[bytes]:
    """The decompressed bytes, without a leading byte-order mark of UTF-8, in chunks of at most about `CHUNK` bytes.

    Raises:
        BrokenOffError: the compressed bytes end early or are damaged; everything decoded before was yielded.
    """
    with path.open("rb") as stream:
        pieces = _plain(stream, reading) if compression is None else _decompressed(stream, compression, reading)
        head = b""
        for piece in pieces:
            head += piece
            if len(head) >= len(MARK):
                break
        if head := head.removeprefix(MARK):
            yield head
        yield from pieces


def _plain(stream: BinaryIO, reading: Reading) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK):
        reading.bytes_consumed += len(chunk)
        yield chunk


def _decompressed(stream: BinaryIO, compression: str, reading: Reading) -> Iterator[bytes]:
    decompressor, is_open, data, total = _DECOMPRESSORS[compression](), False, b"", 0
    begin = fed = decoded = 0
    while True:
        if not data and decompressor.needs_input:
            data = stream.read(PIECE)
            if not data:
                break
        if not is_open:
            data = data.lstrip(b"\0") if total and compression in PADDED else data
            begin, fed, decoded = stream.tell() - len(data), 0, 0
            reading.bytes_consumed = begin
            if not data:
                continue
            is_open = True
        try:
            found = decompressor.decompress(data, CHUNK)
        except _DAMAGED as error:
            rescued = _rescue(stream, compression, begin, fed, decoded)
            if rescued:
                yield rescued
            reading.bytes_consumed = begin
            raise _broken_off(compression, total + len(rescued), str(error)) from error
        fed, decoded, total = fed + len(data), decoded + len(found), total + len(found)
        data, reading.bytes_consumed = b"", stream.tell()
        if decompressor.eof:
            data, is_open = decompressor.unused_data, False
            decompressor = _DECOMPRESSORS[compression]()
        if found:
            yield found
    if is_open:
        reading.bytes_consumed = begin  # how much it lacks nobody knows
        raise _broken_off(compression, total, "the last stream has no end")


def _rescue(stream: BinaryIO, compression: str, begin: int, fed: int, decoded: int) -> bytes:
    """What the stream at ``begin`` holds between its first ``decoded`` bytes and its damage.

    The call that met the damage gave nothing; so the ``fed`` bytes before it are decoded anew, and then byte by byte.
    """
    stream.seek(begin)
    decompressor, found, count = _DECOMPRESSORS[compression](), [], 0
    try:
        while data := stream.read(min(PIECE, begin + fed - stream.tell()) if stream.tell() < begin + fed else 1):
            while data or not decompressor.needs_input:
                piece = decompressor.decompress(data, CHUNK)
                found.append(piece[max(0, decoded - count) :])
                data, count = b"", count + len(piece)
    except _DAMAGED:
        pass
    return b"".join(found)


def _broken_off(compression: str, decoded: int, why: str) -> BrokenOffError:
    detail = f"{compression} data break off or are damaged after {decoded:,} decoded bytes: {why}"
    return BrokenOffError(Problem("truncated_file", detail))


class Line(NamedTuple):
    number: int
    data: bytes
    """Content without the line end; the first ``line_bytes`` bytes where the line is longer."""
    length: int
    """Bytes of the whole line."""


def lines_of(path: Path, line_bytes: int, reading: Reading) -> Iterator[Line]:
    """Physical lines, by ``\\n``, or by ``\\r`` where the first `CHUNK` bytes have no ``\\n``.

    At most ``line_bytes`` bytes of each, plus two chunks, are held.

    Raises:
        BrokenOffError: the compressed bytes end early or are damaged.
    """
    number = 1
    parts: list[bytes] = []
    length = 0
    try:
        for chunk in _with_line_feeds(text_chunks(path, reading)):
            *complete, rest = chunk.split(b"\n")
            for data in complete:
                if parts:
                    length += len(data)
                    parts.append(data[: max(0, line_bytes - length + len(data))])
                    data = b"".join(parts)
                    parts = []
                else:
                    length = len(data)
                yield Line(number, data.removesuffix(b"\r") if length <= line_bytes else data, length)
                number += 1
                length = 0
            if rest:
                # An endless line is counted to its end but kept only as far as it may be long.
                parts.append(rest[: max(0, line_bytes - length)])
                length += len(rest)
    except BrokenOffError as end:
        raise BrokenOffError(end.problem, b"".join(parts)) from end
    if length:
        yield Line(number, b"".join(parts), length)


def _with_line_feeds(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The bytes; ``\\r`` is a line feed where it alone ends the lines, as some programs write them."""
    head = b""
    try:
        for piece in pieces:
            head += piece
            if b"\n" in piece or len(head) >= CHUNK:
                break
    except BrokenOffError:
        yield _feeds(head) if b"\n" not in head else head
        raise
    if b"\n" in head or b"\r" not in head[:-1]:
        yield from chain([head], pieces)
    else:
        yield _feeds(head)
        yield from map(_feeds, pieces)


def _feeds(piece: bytes) -> bytes:
    return piece.replace(b"\r", b"\n")


def text_chunks(path: Path, reading: Reading) -> Iterator[bytes]:
    """As `chunks`, of what is not UTF-16.

    Raises:
        UnreadableFileError: it is.
    """
    pieces = chunks(path, reading.compression, reading)
    head = next(pieces, b"")
    if encoding := _utf16(head[:HEAD]):
        decoder = codecs.getincrementaldecoder(encoding)("replace")
        texts = [decoder.decode(piece) for piece in chain([head], pieces)]
        rows = sum(1 for line in "".join(texts).splitlines() if line.strip("\ufeff \t"))
        detail = f"{encoding.upper()}; valid is UTF-8: iconv -f {encoding.upper()} -t UTF-8 makes it"
        raise UnreadableFileError(Problem("invalid_encoding", detail), max(0, rows - (reading.format == "csv")))
    yield from chain([head] if head else [], pieces)


def _utf16(head: bytes) -> str | None:
    """UTF-16 in the order of its bytes, by the mark or by the zeros that Latin letters have in it."""
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16-le" if head[:2] == codecs.BOM_UTF16_LE else "utf-16-be"
    odd, even = head[1::2].count(0), head[::2].count(0)
    if max(odd, even) <= 0.3 * len(head) or min(odd, even) > 0.1 * len(head):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"
