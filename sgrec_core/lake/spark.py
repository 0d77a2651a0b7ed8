"""Spark over the lake, without JVM jars: executors read and write Parquet, delta-rs keeps the transaction log.

Executors check every batch against the contract and write files that no reader sees; the driver checks the keys over
what was written and then commits all files at once. Files of a write that failed are removed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction

from sgrec_core.errors import ContractError, SettingsError
from sgrec_core.files import read_json
from sgrec_core.lake.contracts import Contract, load_contract
from sgrec_core.lake.spark_files import FILE, OfBatches, read_files, repeated_hashes
from sgrec_core.lake.storage import filesystem_of, paths_of
from sgrec_core.lake.tables import Lake, Where, commit_properties
from sgrec_core.settings import Settings

if TYPE_CHECKING:
    from pyspark import SparkConf
    from pyspark.sql import DataFrame, SparkSession

JAVA_VERSIONS = "17 or 21"
VECTORS = "jdk.incubator.vector"
"""A module of Java that Spark loads."""
LOG_CONFIGURATION = Path(__file__).with_name("log4j2.properties")
GATEWAY = "_SGREC_SPARK_GATEWAY"
"""Environment variable that names the file of `sgrec_core.lake.gateway`; `sgrec nightly` sets it for its own jobs."""
GATEWAY_SECONDS = 20.0
"""How long a job waits for that JVM before it starts its own."""


def check_java() -> None:
    """Fail before Spark does, in words.

    Raises:
        SettingsError: no Java, or one that is too old.
    """
    home, java = os.environ.get("JAVA_HOME"), _java()
    if shutil.which(java) is None:
        where = f"JAVA_HOME={home} holds no bin/java" if home else "no `java` on the PATH"
        raise SettingsError(
            f"Spark needs Java {JAVA_VERSIONS}: {where}. Debian, Ubuntu: apt-get install openjdk-17-jdk-headless"
        )
    words = subprocess.run([java, "-version"], capture_output=True, text=True).stderr
    found = re.search(r'version "(\d+)', words)
    if found is None or int(found.group(1)) < 17:
        raise SettingsError(
            f"Spark needs Java {JAVA_VERSIONS}, {java} is: {words.splitlines()[0] if words else 'unknown'}"
        )


def has_java_module(name: str) -> bool:
    """Whether that Java has a module; cut-down ones lack some. It takes a start of Java, so nights do not ask."""
    listed = subprocess.run([_java(), "--list-modules"], capture_output=True, text=True).stdout
    return any(line.partition("@")[0] == name for line in listed.splitlines())


def _java() -> str:
    home = os.environ.get("JAVA_HOME")
    return f"{home}/bin/java" if home else "java"


def spark_configuration(settings: Settings) -> "SparkConf":
    """What a JVM is started with and a session asks for: ``SGREC_SPARK_MASTER`` or local threads."""
    from pyspark import SparkConf

    java_options = [f"-Dlog4j2.configurationFile={LOG_CONFIGURATION.as_uri()}"]
    if settings.spark_master is None:
        # A night's job lives for a minute: compiling it less took a 74,000-event ingest from 43 to 25 CPU seconds.
        java_options += ["-XX:TieredStopAtLevel=1", "-XX:+UseParallelGC"]
    options = {
        "spark.master": settings.spark_master or f"local[{settings.threads}]",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.memory": settings.spark_memory,
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": str(2 * settings.threads),
        "spark.sql.execution.arrow.maxRecordsPerBatch": "50000",
        # Spark's own narration; its errors arrive as exceptions.
        "spark.driver.extraJavaOptions": " ".join(java_options),
        "spark.log.level": "ERROR",
    }
    return SparkConf(loadDefaults=False).setAll(list(options.items()))


def spark_session(settings: Settings, name: str = "sgrec") -> "SparkSession":
    """A Spark session, in the JVM that `sgrec_core.lake.gateway` keeps for this job where there is one.

    Raises:
        SettingsError: there is no suitable Java.
    """
    # Workers must run the interpreter of the driver, whatever `python3` is on their PATH.
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    if jvm := _jvm_of_the_night(settings):
        os.environ["PYSPARK_GATEWAY_PORT"], os.environ["PYSPARK_GATEWAY_SECRET"] = str(jvm["port"]), jvm["secret"]
    else:
        check_java()
    from pyspark.sql import SparkSession

    return SparkSession.builder.config(conf=spark_configuration(settings)).appName(name).getOrCreate()


def _jvm_of_the_night(settings: Settings) -> dict[str, Any] | None:
    """Where the JVM listens that was started for this job with the same options; it may still be starting."""
    path, until = os.environ.pop(GATEWAY, None), time.monotonic() + GATEWAY_SECONDS
    while path and time.monotonic() < until:
        if jvm := read_json(Path(path)):
            return jvm if jvm["options"] == dict(spark_configuration(settings).getAll()) else None
        time.sleep(0.05)
    return None


def read_spark(spark: "SparkSession", lake: Lake, table: str, where: Where | None = None) -> "DataFrame":
    """Rows of the partitions that match ``where`` (partition columns only), as a DataFrame of the contract."""
    from pyspark.sql import functions as F
    from pyspark.sql.pandas.types import from_arrow_schema

    contract = load_contract(table)
    schema = from_arrow_schema(contract.arrow_schema)
    wanted = {
        name: {str(v) for v in (value if isinstance(value, (list, tuple, set)) else [value])}
        for name, value in (where or {}).items()
    }
    unknown = set(wanted) - set(contract.partition_by)
    if unknown:
        raise ContractError(
            f"table {table}: {sorted(unknown)} are not partition columns; valid are {', '.join(contract.partition_by)}"
        )
    frame: DataFrame | None = None
    delta = lake.open(table)
    for partition in lake.partitions(table):
        if any(partition[name] not in values for name, values in wanted.items()):
            continue
        assert delta is not None
        files = paths_of(lake, table, delta, partition)
        part = read_files(spark, _file_schema(contract), files)
        for name, value in partition.items():
            part = part.withColumn(name, F.lit(value).cast(schema[name].dataType))
        part = part.select(*schema.names)
        frame = part if frame is None else frame.unionByName(part)
    return spark.createDataFrame([], schema) if frame is None else frame


def publish_spark(
    lake: Lake,
    table: str,
    frame: "DataFrame",
    *,
    partition: Mapping[str, object],
    fingerprint: str,
    metadata: Mapping[str, object] | None = None,
    make: OfBatches | None = None,
) -> int:
    """Replace the rows of ``partition`` with those of ``frame`` in one commit; see `Lake.publish`.

    Args:
        frame: all columns of the contract; those named in ``partition`` may be absent and are filled in.
        make: what the rows are made with in the executors, of the batches of ``frame``, which is anything then.

    Returns:
        Number of rows written.

    Raises:
        ContractError: rows break the contract, keys repeat, or another writer published the partition meanwhile.
    """
    from pyspark.sql import functions as F
    from pyspark.sql.pandas.types import from_arrow_schema

    contract = load_contract(table)
    if make is None:
        schema = from_arrow_schema(contract.arrow_schema)
        for name, value in partition.items():
            frame = frame.withColumn(name, F.lit(str(value)).cast(schema[name].dataType))
        missing = [name for name in schema.names if name not in frame.columns]
        if missing:
            raise ContractError(f"table {table}: missing columns {', '.join(missing)}")
        frame = frame.select(*(F.col(name).cast(schema[name].dataType).alias(name) for name in schema.names))
        frame = frame.sortWithinPartitions(*contract.key)
    delta = lake.create(table)
    write_id = uuid.uuid4().hex
    root = lake.uri(table)
    try:
        written = frame.mapInArrow(
            _writer(table, root, write_id, make), "path string, size long, rows long, partition string"
        )
        rows = written.collect()
        actions: list[AddAction | RemoveAction] = [
            AddAction(
                path=row.path,
                size=row.size,
                partition_values=json.loads(row.partition),
                modification_time=int(time.time() * 1000),
                data_change=True,
                stats=json.dumps({"numRecords": row.rows}),
            )
            for row in rows
        ]
        # A retried task has left two sets of files; those that were not reported are not in `actions`.
        _check_keys(frame.sparkSession, contract, root, [row.path for row in rows])
        delta.create_write_transaction(
            actions,
            mode="overwrite",
            schema=delta.schema(),
            partition_by=list(contract.partition_by),
            partition_filters=[(name, "=", str(value)) for name, value in partition.items()],
            commit_properties=commit_properties(table, partition, fingerprint, metadata),
        )
    except DeltaError as error:
        _remove(root, write_id, keep=())
        raise ContractError(f"table {table}, partition {dict(partition)}: not published: {error}") from error
    except BaseException as error:
        _remove(root, write_id, keep=())
        found = re.search(r"ContractError: (.*)", str(error))
        if found and not isinstance(error, ContractError):
            # The executor's error arrives inside a Java stack trace; the user needs its one line.
            raise ContractError(found.group(1)) from None
        raise
    _remove(root, write_id, keep={row.path for row in rows})
    return sum(row.rows for row in rows)


def _file_schema(contract: Contract) -> pa.Schema:
    """What stands in the Parquet files: Delta keeps partition columns in its log alone."""
    return pa.schema([f for f in contract.arrow_schema if f.name not in contract.partition_by])


def _writer(table: str, root: str, write_id: str, make: OfBatches | None = None) -> OfBatches:
    """The function that runs in the executors: check, split by partition, write."""

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        contract = load_contract(table)
        schema = _file_schema(contract)
        filesystem, folder = filesystem_of(root)
        writers: dict[str, tuple[str, pq.ParquetWriter, int]] = {}
        attempt = uuid.uuid4().hex[:8]
        try:
            for batch in batches if make is None else make(batches):
                rows = contract.conform(pa.Table.from_batches([batch]))
                contract.check(rows)
                for values in (
                    rows.select(contract.partition_by).group_by(list(contract.partition_by)).aggregate([]).to_pylist()
                ):
                    mask = None
                    for name, value in values.items():
                        same = pc.equal(rows[name], pa.scalar(value, contract.column(name).arrow_type))
                        mask = same if mask is None else pc.and_(mask, same)
                    part = rows.filter(mask).select(schema.names)
                    texts = {name: str(value) for name, value in values.items()}
                    key = json.dumps(texts, sort_keys=True)
                    if key not in writers:
                        parts = [f"{name}={quote(texts[name], safe='')}" for name in contract.partition_by]
                        path = "/".join([*parts, f"part-{write_id}-{attempt}-{len(writers):05d}.parquet"])
                        filesystem.create_dir("/".join([folder, *parts]), recursive=True)
                        writers[key] = (
                            path,
                            pq.ParquetWriter(f"{folder}/{path}", schema, filesystem=filesystem, compression="zstd"),
                            0,
                        )
                    path, writer, count = writers[key]
                    writer.write_table(part)
                    writers[key] = path, writer, count + part.num_rows
        finally:
            for _, writer, _ in writers.values():
                writer.close()
        report = [
            {"path": path, "size": filesystem.get_file_info(f"{folder}/{path}").size, "rows": count, "partition": key}
            for key, (path, _, count) in writers.items()
        ]
        yield pa.RecordBatch.from_pylist(
            report,
            pa.schema([("path", pa.string()), ("size", pa.int64()), ("rows", pa.int64()), ("partition", pa.string())]),
        )

    return write


def _check_keys(spark: "SparkSession", contract: Contract, root: str, paths: list[str]) -> None:
    """Uniqueness over the files that are about to be committed, each partition for itself."""
    from pyspark.sql import functions as F

    if not paths:
        return
    # The file tells the partition: partition columns are not in the files.
    rows = read_files(spark, _file_schema(contract), [f"{root}/{path}" for path in paths])
    for columns in (contract.key, *contract.unique):
        inside = [name for name in columns if name not in contract.partition_by]
        if not repeated_hashes(rows, *inside).limit(1).collect():
            continue
        folder = F.regexp_extract(FILE, r"^(.*)/[^/]*$", 1)
        repeated = rows.groupBy(folder.alias("_folder"), *inside).count().filter("count > 1").limit(1).collect()
        if repeated:
            first = {name: repeated[0][name] for name in inside}
            raise ContractError(
                f"table {contract.table}: {', '.join(columns)} must be unique, but {first} occurs"
                f" {repeated[0]['count']} times"
            )


def _remove(root: str, write_id: str, keep: set[str] | tuple[()]) -> None:
    """Delete files of this write that were not committed."""
    filesystem, folder = filesystem_of(root)
    for info in filesystem.get_file_info(pafs.FileSelector(folder, recursive=True, allow_not_found=True)):
        if f"part-{write_id}-" in info.base_name and info.path.removeprefix(f"{folder}/") not in keep:
            filesystem.delete_file(info.path)
