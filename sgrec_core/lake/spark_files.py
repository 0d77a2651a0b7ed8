"""Parquet files that Spark's executors write and read beside its own engine.

Rows that Spark need not look at stay in Arrow: into the JVM and out of it again they take several times as long as
they take to be read and written.
"""

import os
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from sgrec_core.lake.storage import STAGED, filesystem_of
from sgrec_core.lake.tables import Lake

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

OfBatches = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]
"""What runs in the executors: batches in, batches out."""
STAGED_ROWS = 100_000
"""Rows of a group in a staged file."""
HASHES = 1_000_000
"""That one task sorts."""
FILE = "_file"
"""Column with the file that a row stands in."""


@contextmanager
def staging(lake: Lake) -> Iterator[str]:
    """A folder beside the tables for rows on their way into them, where every executor reaches it; gone afterwards."""
    root = f"{lake.root}/{STAGED}"
    filesystem, path = filesystem_of(root)
    machine = socket.gethostname()
    for left in filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True)):
        # Of a process of this machine that was killed; what others left goes with `sgrec maintain`.
        of_machine, _, process = left.base_name.rpartition("-")
        if of_machine == machine and process.isdigit() and not psutil.pid_exists(int(process)):
            filesystem.delete_dir(left.path)
    name = f"{machine}-{os.getpid()}"
    filesystem.create_dir(f"{path}/{name}", recursive=True)
    try:
        yield f"{root}/{name}"
    finally:
        filesystem.delete_dir(f"{path}/{name}")


def stage(frame: "DataFrame", make: OfBatches, schema: pa.Schema, folder: str) -> list[str]:
    """Files that the executors write into ``folder``, one a task: what ``make`` makes of its batches."""

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        filesystem, inside = filesystem_of(folder)
        path = f"part-{uuid.uuid4().hex}.parquet"
        held: list[pa.RecordBatch] = []
        with pq.ParquetWriter(f"{inside}/{path}", schema, filesystem=filesystem) as writer:
            for batch in make(batches):
                held.append(batch)
                if sum(part.num_rows for part in held) >= STAGED_ROWS:
                    writer.write_table(pa.Table.from_batches(held))
                    held = []
            writer.write_table(pa.Table.from_batches(held, schema))
        yield pa.RecordBatch.from_pylist([{"path": path}], pa.schema([("path", pa.string())]))

    # A retried task has left two files; only the one that was reported is read.
    return [f"{folder}/{row.path}" for row in frame.mapInArrow(write, "path string").collect()]


def staged_rows(paths: Sequence[str], columns: Sequence[str], column: str, values: pa.Array) -> pa.Table:
    """Some columns of staged files, where ``column`` has one of ``values``."""
    chosen = [(column, "in", values.to_pylist())]
    inside = [filesystem_of(path) for path in paths]
    return pq.read_table(
        [name for _, name in inside], filesystem=inside[0][0], columns=list(columns), filters=chosen, use_threads=False
    )


def staged_groups(path: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns of a staged file, at most about `STAGED_ROWS` rows at a time."""
    filesystem, inside = filesystem_of(path)
    with pq.ParquetFile(filesystem.open_input_file(inside)) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=list(columns), use_threads=False)


def read_files(spark: "SparkSession", schema: pa.Schema, paths: Sequence[str]) -> "DataFrame":
    """Rows of Parquet files, and `FILE`. Columns that a file lacks are null.

    Spark itself reads local files. Of URIs the executors read through Arrow: no jars for object stores are needed.
    """
    from pyspark.sql import functions as F
    from pyspark.sql.pandas.types import from_arrow_schema
    from pyspark.sql.types import StringType

    if not any("://" in path for path in paths):
        files = spark.read.schema(from_arrow_schema(schema)).parquet(*paths)
        return files.withColumn(FILE, F.input_file_name())
    listed = spark.createDataFrame([(path,) for path in paths], "path string")
    listed = listed.repartition(len(paths))
    return listed.mapInArrow(_reader(schema), from_arrow_schema(schema).add(FILE, StringType()))


def _reader(schema: pa.Schema) -> OfBatches:
    """The function that runs in the executors: paths in, rows out."""

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for path in batch["path"].to_pylist():
                filesystem, name = filesystem_of(path)
                for part in pq.ParquetFile(filesystem.open_input_file(name)).iter_batches():
                    # A file from before a column came into the contract lacks it: nulls, as Spark itself reads it.
                    rows = pa.Table.from_batches([part])
                    for field in schema:
                        if field.name not in rows.column_names:
                            rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
                    rows = rows.select(schema.names).cast(schema)
                    yield from rows.append_column(FILE, pa.repeat(path, rows.num_rows)).to_batches()

    return read


def repeated_hashes(frame: "DataFrame", *key: str) -> "DataFrame":
    """The values of ``xxhash64(key)`` that several rows have, in the column ``hash``; of a few it is chance.

    Of many rows only hashes travel, and are sorted by numpy: where hardly any key repeats, Spark's own grouping takes
    several times as long. Of few it is the faster one: no Python has to start.
    """
    from pyspark.sql import functions as F

    hashes, rows = frame.select(F.xxhash64(*key).alias("hash")), frame.count()
    if rows <= HASHES:
        return hashes.groupBy("hash").count().where("count > 1").select("hash")
    return hashes.repartition(rows // HASHES + 1, "hash").mapInArrow(_repeated, "hash long")


def _repeated(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    hashes = np.sort(np.concatenate([np.empty(0, np.int64), *(batch["hash"].to_numpy() for batch in batches)]))
    twice = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    yield pa.RecordBatch.from_arrays([pa.array(twice)], ["hash"])
