"""The files under a lake, wherever it lies."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake import DeltaTable

from sgrec_core.lake.conditions import Where, files
from sgrec_core.lake.contracts import load_contract
from sgrec_core.lake.tables import Lake

STAGED = "_staged"
"""Folder beside the tables for what is on its way into them."""


def filesystem_of(root: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a path or a URI, and the path there."""
    if "://" in root:
        return pafs.FileSystem.from_uri(root)
    return pafs.LocalFileSystem(), str(Path(root).resolve())


def paths_of(lake: Lake, table: str, delta: DeltaTable, where: Where) -> list[str]:
    """Where the files of ``delta`` lie that can hold rows of ``where``: below the root as it was given.

    delta-rs escapes blanks in local paths and leaves out the scheme of ``file://``.
    """
    base = delta.table_uri.removeprefix("file://").rstrip("/")
    chosen = delta.file_uris(file_pruning_predicate=files(load_contract(table), where))
    return [lake.uri(table) + path.removeprefix("file://").removeprefix(base) for path in chosen]


def scan(lake: Lake, table: str, where: Where, columns: Sequence[str], *, rows: int) -> Iterator[pa.RecordBatch]:
    """Columns of the files that can hold rows of ``where``, in any order; partition columns are not in files.

    For few columns of many small files: Arrow's dataset, with which `Lake.read` reads, takes longer to look at such a
    file than this does to read it. A large file comes ``rows`` at a time, so that the same memory serves again.
    """
    contract, delta = load_contract(table), lake.open(table)
    schema = pa.schema([contract.arrow_schema.field(name) for name in columns])
    for path in paths_of(lake, table, delta, where) if delta else ():
        filesystem, name = filesystem_of(path)
        with filesystem.open_input_file(name) as file:
            parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
            for batch in parquet.iter_batches(rows, columns=list(columns), use_threads=False):
                yield batch.cast(schema)
