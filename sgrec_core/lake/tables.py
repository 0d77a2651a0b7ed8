"""Reading and transactional publishing of Delta tables through delta-rs.

A publication replaces exactly one partition in one commit, or does nothing: what was published there last is known by
its fingerprint, which stands in the Delta log as the version of the application transaction ``<table>/<partition>``. A
killed job therefore leaves the table at its last commit, and a re-run with the same inputs commits nothing.
"""

import json
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from sgrec_core.errors import ContractError
from sgrec_core.lake.conditions import Where, expression, files, literal, predicate, split, with_partition
from sgrec_core.lake.contracts import Contract, load_contract

T = TypeVar("T")
TRIES = 20
"""Of a commit that other writers come before."""


class Lake:
    """The Delta tables under ``root``: a local folder or an object-store URI."""

    def __init__(self, root: str | Path):
        self.root = str(root).rstrip("/")
        self._appended: dict[str, DeltaTable] = {}
        """Tables that `append` has added rows to: the next time only what is new in their logs is read."""

    def uri(self, table: str) -> str:
        """Where ``table`` lies. Raises ContractError for a table without contract."""
        return f"{self.root}/{load_contract(table).table}"

    def open(self, table: str, version: int | None = None) -> DeltaTable | None:
        """The Delta table, or None while nothing was published. Raises ContractError for a version that is gone."""
        try:
            return DeltaTable(self.uri(table), version=version)
        except DeltaError as error:
            if version is not None:
                raise ContractError(f"table {table} has no version {version}, or has it no more") from error
            if not isinstance(error, TableNotFoundError):
                raise
            return None

    def version(self, table: str) -> int | None:
        """The current Delta version of ``table``, or None while nothing was published."""
        delta = self.open(table)
        return None if delta is None else delta.version()

    def partitions(self, table: str) -> list[dict[str, str]]:
        """The partitions that hold rows, as dicts of text, sorted."""
        delta = self.open(table)
        return [] if delta is None else sorted(delta.partitions(), key=lambda partition: sorted(partition.items()))

    def fingerprint(self, table: str, partition: Mapping[str, object]) -> int | None:
        """What was published last under ``partition`` (the same columns that were passed to `publish`), or None."""
        delta = self.open(table)
        return None if delta is None else delta.transaction_version(application_id(table, partition))

    def published_until(self, table: str, day: str) -> list[str]:
        """What `publish` has put into the table up to ``day``: a line a publication, with its fingerprint.

        A compaction changes nothing of it, nor do rows that are only appended.
        """
        delta = self.open(table)
        if delta is None:
            return []
        days = [partition for partition in delta.partitions() if partition.get("day", "9999") <= day]
        # A publication is of a whole day, or of one of the day's partitions.
        names = {application_id(table, of) for one in days for of in (one, {"day": one["day"]})}
        versions = {name: delta.transaction_version(name) for name in names}
        return sorted(f"{name} {version}" for name, version in versions.items() if version is not None)

    def read(
        self,
        table: str,
        *,
        where: Where | None = None,
        columns: Sequence[str] | None = None,
        version: int | None = None,
        ordered: bool = True,
    ) -> pa.Table:
        """Rows in the order of the contract's key, so that the same rows always come in the same order.

        Args:
            where: column to value, or to a list of values of which one must match.
            columns: names of the columns wanted; all by default.
            version: a Delta version; the current one by default.
            ordered: False for any order.

        Returns:
            The rows; an empty table of the contract's schema while nothing was published. For a ``version`` that is
            gone ContractError is raised.
        """
        contract = load_contract(table)
        wanted = list(columns) if columns is not None else contract.arrow_schema.names
        delta = self.open(table, version)
        if delta is None:
            return contract.arrow_schema.empty_table().select(wanted)
        if version is None:
            check_age(contract, delta)
        partition, other = split(contract, where or {})
        needed = list(dict.fromkeys([*wanted, *(contract.key if ordered else ()), *other]))
        dataset = delta.to_pyarrow_dataset(file_pruning_predicate=files(contract, where or {}))
        try:
            rows = dataset.to_table(columns=needed, filter=expression(contract, partition))
        except FileNotFoundError as error:
            if version is None:
                raise
            lost = str(error).partition("\n")[0]
            raise ContractError(f"table {table}: files of version {version} are gone: {lost}") from error
        rows = _typed(contract, rows)
        if other:
            rows = rows.filter(expression(contract, other))
        if ordered:
            rows = rows.sort_by([(name, "ascending") for name in contract.key])
        return rows.select(wanted)

    def count(self, table: str, *, where: Where | None = None) -> int:
        """Number of rows; see `read`."""
        contract = load_contract(table)
        delta = self.open(table)
        if delta is None:
            return 0
        partition, other = split(contract, where or {})
        if not other:
            dataset = delta.to_pyarrow_dataset(file_pruning_predicate=files(contract, where or {}))
            return dataset.count_rows(filter=expression(contract, partition))
        return self.read(table, where=where, columns=list(other)).num_rows

    def publish(
        self,
        table: str,
        data: pa.Table,
        *,
        partition: Mapping[str, object],
        fingerprint: str,
        metadata: Mapping[str, object] | None = None,
    ) -> int:
        """Replace the rows of ``partition`` with ``data`` in one commit and return the Delta version.

        Args:
            data: all columns of the contract; those named in ``partition`` may be absent and are filled in.
            partition: values of one or more partition columns, ``{"day": "2026-01-05"}``.
            fingerprint: hex digest of all that determined the rows.
            metadata: facts for the commit (run id, wall time); never part of the rows.

        Raises:
            ContractError: the rows break the contract, or another writer published the partition meanwhile.
        """
        contract = load_contract(table)
        rows = contract.conform(with_partition(contract, data, partition))
        contract.check(rows)
        contract.check_unique(rows)
        self.create(table)
        with _delta_errors(f"table {table}, partition {dict(partition)}: not published"):
            self.replace(
                table,
                partition,
                lambda: write_deltalake(
                    self.uri(table),
                    rows.sort_by([(name, "ascending") for name in contract.key]),
                    mode="overwrite",
                    predicate=predicate(contract, partition),
                    commit_properties=commit_properties(table, partition, fingerprint, metadata),
                ),
            )
        return self._version(table)

    def replace(self, table: str, partition: Mapping[str, object], commit: Callable[[], None]) -> None:
        """``commit``, which replaces ``partition``; again where only `sgrec_core.lake.maintenance` came before.

        That moves rows between files and publishes nothing, so the fingerprint is still the one from before.
        """
        before = self.fingerprint(table, partition)
        _committed(commit, may_try_again=lambda: self.fingerprint(table, partition) == before)

    def append(self, table: str, data: pa.Table, *, metadata: Mapping[str, object] | None = None) -> int:
        """Add rows whose keys are known to be new, in one commit that no other writer's gets in the way of.

        What is there is not read, so that it costs the same however much that is.

        Returns:
            The Delta version. Nothing is committed for an empty ``data``.

        Raises:
            ContractError: the rows break the contract.
        """
        contract = load_contract(table)
        rows = contract.conform(data)
        contract.check(rows)
        contract.check_unique(rows)
        rows = rows.sort_by([(name, "ascending") for name in contract.key])
        properties = CommitProperties(custom_metadata=_metadata(metadata), max_commit_retries=TRIES)

        def commit() -> int:
            delta = self._appended.pop(table, None)
            delta = self.create(table) if delta is None else delta
            if rows.num_rows:
                write_deltalake(delta, rows, mode="append", commit_properties=properties)
            self._appended[table] = delta
            return delta.version()

        with _delta_errors(f"table {table}: rows not added"):
            # Rows do not conflict, but another writer may just be making the table.
            return _committed(commit)

    def upsert(self, table: str, data: pa.Table, *, metadata: Mapping[str, object] | None = None) -> int:
        """Add rows to a content-keyed table in one commit; a row whose key is there already replaces the old one.

        Other writers may add rows at the same time: a commit that one of theirs came before is tried again on top of
        it.

        Returns:
            The Delta version. Nothing is committed for an empty ``data``.

        Raises:
            ContractError: the rows break the contract, or other writers came first `TRIES` times.
        """
        contract = load_contract(table)
        rows = contract.conform(data)
        contract.check(rows)
        contract.check_unique(rows)
        with _delta_errors(f"table {table}: rows not added"):
            return _committed(lambda: self._merge(contract, rows, metadata))

    def _merge(self, contract: Contract, rows: pa.Table, metadata: Mapping[str, object] | None) -> int:
        """One try of `upsert`."""
        table = contract.table
        self.create(table)
        delta = DeltaTable(self.uri(table))
        if rows.num_rows == 0:
            return delta.version()
        # Naming the partitions as constants lets the merge read only these.
        conditions = [f"target.{name} = source.{name}" for name in contract.key]
        for name in contract.partition_by:
            values = sorted({str(value) for value in rows[name].to_pylist()})
            conditions.append(f"target.{name} IN ({', '.join(literal(value) for value in values)})")
        (
            delta.merge(
                rows.sort_by([(name, "ascending") for name in contract.key]),
                predicate=" AND ".join(conditions),
                source_alias="source",
                target_alias="target",
                commit_properties=CommitProperties(custom_metadata=_metadata(metadata)),
            )
            .when_matched_update_all()
            .when_not_matched_insert_all()
            .execute()
        )
        return self._version(table)

    def _version(self, table: str) -> int:
        """Of a table that is there."""
        version = self.version(table)
        assert version is not None
        return version

    def write_after(self, table: str, data: pa.Table, version: int, mode: Literal["append", "overwrite"]) -> bool:
        """Write rows that were made from the table as of Delta ``version`` in one commit; False if another came first.

        Raises:
            ContractError: the rows break the contract.
        """
        contract = load_contract(table)
        rows = contract.conform(data)
        contract.check(rows)
        # Of two writers that have read the same version one conflicts with the other's transaction.
        turn = Transaction(application_id(table, {}), version + 1)
        with _delta_errors(f"table {table}: rows not written"):
            try:
                write_deltalake(
                    DeltaTable(self.uri(table), version=version),
                    rows,
                    mode=mode,
                    commit_properties=CommitProperties(app_transactions=[turn]),
                )
            except CommitFailedError:
                return False
        return True

    def create(self, table: str) -> DeltaTable:
        """The Delta table, made from its contract (schema, partitions, CHECK constraints) if it does not exist.

        One that does gets the constraints that it lacks, and those whose contract allows more values by now.
        """
        contract = load_contract(table)
        delta = self.open(table)
        if delta is None:
            if "://" not in self.root:
                Path(self.root).mkdir(parents=True, exist_ok=True)
            delta = DeltaTable.create(
                self.uri(table),
                contract.arrow_schema,
                mode="ignore",
                partition_by=list(contract.partition_by),
                name=table,
                description=contract.description,
                configuration=contract.delta_properties,
            )
        check_age(contract, delta)
        present = delta.metadata().configuration
        wanted = {f"delta.constraints.{name}": condition for name, condition in contract.delta_constraints.items()}
        absent = [key for key in wanted if key not in present]
        wider = {key: wanted[key] for key in wanted if key in present and _allows_more(wanted[key], present[key])}
        if not absent and not wider:
            return delta
        for key in absent:
            delta.alter.add_constraint({key.removeprefix("delta.constraints."): wanted[key]})
        if wider:
            # As properties: dropped and added, the table would be without between two commits. Its rows pass already.
            delta.alter.set_table_properties(wider, raise_if_not_exists=False)
        return DeltaTable(self.uri(table))


@contextmanager
def _delta_errors(what: str) -> Iterator[None]:
    """Delta's errors as our own: "``what``: Delta's words"."""
    try:
        yield
    except DeltaError as error:
        raise ContractError(f"{what}: {error}") from error


def _committed(commit: Callable[[], T], *, may_try_again: Callable[[], bool] = lambda: True) -> T:
    """``commit``, `TRIES` times at most where other writers come before it."""
    for attempt in range(1, TRIES):
        try:
            return commit()
        except CommitFailedError:
            if not may_try_again():
                raise
            # Apart from the others, so that the same writers do not meet again.
            time.sleep(random.uniform(0, 0.1 * min(2**attempt, 64)))
    return commit()


def check_age(contract: Contract, delta: DeltaTable) -> None:
    """ContractError when the table was made before a column came into its contract: a merge would drop that column."""
    names = {field.name for field in delta.schema().fields}
    missing = [name for name in contract.arrow_schema.names if name not in names]
    if missing:
        raise ContractError(
            f"table {contract.table} lacks column {', '.join(missing)}: it comes from an older version of sgrec. Run"
            " `sgrec migrate`, or add the column with ALTER"
        )


def _allows_more(wanted: str, present: str) -> bool:
    """Whether a constraint is one of ``allowed`` values with some added; Delta keeps it in words of its own."""
    before, now = (set(re.findall("'[^']*'", condition)) for condition in (present, wanted))
    return bool(before) and before < now


def application_id(table: str, partition: Mapping[str, object]) -> str:
    """The application of the Delta transaction under which ``partition`` is published."""
    return "/".join([table, *(f"{name}={value}" for name, value in sorted(partition.items()))])


def transaction_version(fingerprint: str) -> int:
    """The leading 63 bits of a hex digest: Delta's transaction versions are signed 64-bit integers."""
    return int(fingerprint[:16].ljust(16, "0"), 16) >> 1


def commit_properties(
    table: str, partition: Mapping[str, object], fingerprint: str, metadata: Mapping[str, object] | None
) -> CommitProperties:
    """What every publication writes into the Delta log beside its files."""
    return CommitProperties(
        custom_metadata=_metadata({**(metadata or {}), "fingerprint": fingerprint}),
        app_transactions=[Transaction(application_id(table, partition), transaction_version(fingerprint))],
    )


def _metadata(metadata: Mapping[str, object] | None) -> dict[str, str]:
    return {
        f"sgrec.{key}": value if isinstance(value, str) else json.dumps(value)
        for key, value in (metadata or {}).items()
    }


def _typed(contract: Contract, rows: pa.Table) -> pa.Table:
    """Rows in the contract's types.

    Raises:
        ContractError: another writer left nulls where the contract has none.
    """
    fields = [contract.arrow_schema.field(name) for name in rows.column_names]
    try:
        return rows.cast(pa.schema(fields))
    except ValueError as error:
        raise ContractError(f"table {contract.table}: holds rows that break its contract: {error}") from error
