"""Table contracts: one YAML file per table in ``schemas/`` is the single source of truth.

From a contract come the Arrow schema, the Delta CHECK constraints, the checks that every publication runs, the Great
Expectations suite (`sgrec_core.quality`) and the table documentation.
"""

from dataclasses import dataclass, field
from functools import cache

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from sgrec_core.errors import ContractError
from sgrec_core.settings import PROJECT_ROOT

SCHEMAS = PROJECT_ROOT / "schemas"

ARROW_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "binary": pa.binary(),
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "date32": pa.date32(),
    "timestamp[us, UTC]": pa.timestamp("us", "UTC"),
    "list<string>": pa.list_(pa.string()),
    "list<int32>": pa.list_(pa.int32()),
    "list<float32>": pa.list_(pa.float32()),
    "list<float64>": pa.list_(pa.float64()),
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column. For list types the bounds are those of each element."""

    name: str
    type: str
    description: str
    nullable: bool = False
    minimum: float | None = None
    above: float | None = None
    """Like ``minimum``, without the bound itself."""
    maximum: float | None = None
    allowed: tuple[str, ...] | None = None
    max_length: int | None = None

    @property
    def arrow_type(self) -> pa.DataType:
        return ARROW_TYPES[self.type]

    @property
    def is_list(self) -> bool:
        return self.type.startswith("list<")

    def valid(self) -> str:
        """What the column accepts, in words."""
        words = [self.type, "or null" if self.nullable else "not null"]
        if self.allowed:
            words.append("one of " + ", ".join(self.allowed))
        words += [word for word, _, _ in self.bounds()]
        if self.max_length is not None:
            words.append(f"at most {self.max_length:,} characters")
        return ", ".join(words)

    def bounds(self) -> list[tuple[str, str, float]]:
        """Each bound in words, as SQL's comparison, and itself."""
        bounds = (
            ("at least", ">=", self.minimum),
            ("above", ">", self.above),
            ("at most", "<=", self.maximum),
        )
        return [(f"{word} {bound:g}", sign, bound) for word, sign, bound in bounds if bound is not None]


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What a table promises, who answers for it and what to do when it is broken."""

    table: str
    description: str
    owner: str
    severity: str
    runbook: str
    partition_by: tuple[str, ...]
    key: tuple[str, ...]
    """Unique within a partition."""
    columns: tuple[Column, ...]
    unique: tuple[tuple[str, ...], ...] = ()
    """Further column sets that are unique within a partition."""
    may_be_empty: bool = False
    checkpoint_interval: int = 100
    """Commits between checkpoints of its Delta log, which every opening reads: few where commits are many and small."""
    _by_name: dict[str, Column] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._by_name.update({column.name: column for column in self.columns})

    def column(self, name: str) -> Column:
        return self._by_name[name]

    @property
    def arrow_schema(self) -> pa.Schema:
        return pa.schema([pa.field(c.name, c.arrow_type, nullable=c.nullable) for c in self.columns])

    @property
    def delta_properties(self) -> dict[str, str]:
        """What the Delta table is configured with, apart from its constraints."""
        days = [column.name for column in self.columns if column.type == "date32"]
        # Columns of which the log has first and last value in each file: with all, opening takes twice as long.
        named = (
            {"delta.dataSkippingStatsColumns": ",".join(days)} if days else {"delta.dataSkippingNumIndexedCols": "0"}
        )
        return {"delta.checkpointInterval": str(self.checkpoint_interval), **named}

    @property
    def delta_constraints(self) -> dict[str, str]:
        """CHECK constraints by name. Lists are checked by `check` alone: SQL CHECK has no word for their elements."""
        constraints = {}
        for column in self.columns:
            if column.is_list:
                continue
            conditions = []
            if column.allowed:
                values = ", ".join(f"'{value}'" for value in column.allowed)
                conditions.append(f"{column.name} IN ({values})")
            conditions += [f"{column.name} {sign} {bound:g}" for _, sign, bound in column.bounds()]
            if conditions:
                condition = " AND ".join(conditions)
                if column.nullable:
                    condition = f"{column.name} IS NULL OR ({condition})"
                constraints[f"{column.name}_is_valid"] = condition
        return constraints

    def conform(self, data: pa.Table) -> pa.Table:
        """``data`` with exactly the contract's columns, in its order and types.

        Raises:
            ContractError: a column is missing, unknown, or of a type that does not convert without loss.
        """
        names = {column.name for column in self.columns}
        missing = sorted(names - set(data.column_names))
        unknown = sorted(set(data.column_names) - names)
        if missing or unknown:
            raise ContractError(
                f"table {self.table}: "
                + "; ".join(
                    part
                    for part in (
                        f"missing columns {', '.join(missing)}" if missing else "",
                        f"unknown columns {', '.join(unknown)}" if unknown else "",
                    )
                    if part
                )
                + f"; valid are {', '.join(c.name for c in self.columns)}"
            )
        arrays = []
        for column in self.columns:
            values = data.column(column.name)
            try:
                arrays.append(values.cast(column.arrow_type))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
                raise ContractError(
                    f"table {self.table}, column {column.name}: cannot store {values.type} as {column.type}: {error}"
                ) from error
        return pa.table(arrays, schema=self.arrow_schema)

    def check(self, data: pa.Table | pa.RecordBatch) -> None:
        """Check the values of conformed rows.

        Raises:
            ContractError: names table, column, number of bad rows, the first bad row's key and value, and what is
            valid.
        """
        for column in self.columns:
            values = data.column(column.name)
            bad = _bad_rows(column, values)
            count = pc.sum(bad).as_py() or 0
            if count:
                row = pc.index(bad, True).as_py()
                key = ", ".join(f"{name}={data.column(name)[row].as_py()}" for name in self.key)
                raise ContractError(
                    f"table {self.table}, column {column.name}: {count} of {data.num_rows} rows are not valid, first "
                    f"{values[row].as_py()!r} at {key}; valid is {column.valid()}"
                )

    def check_unique(self, data: pa.Table) -> None:
        """Check that the key and the further unique column sets are unique within ``data``, one partition.

        Raises:
            ContractError: names table, columns and the first repeated value.
        """
        for columns in (self.key, *self.unique):
            keys = pa.table({name: _hashable(data.column(name)) for name in columns})
            counts = keys.group_by(list(columns)).aggregate([([], "count_all")])
            repeated = counts.filter(pc.greater(counts["count_all"], 1))
            if repeated.num_rows:
                first = {name: repeated[name][0].as_py() for name in columns}
                raise ContractError(
                    f"table {self.table}: {repeated.num_rows} values of {', '.join(columns)} occur more than once in "
                    f"{data.num_rows} rows, first {first}; the contract wants them unique"
                )


def _hashable(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Lists as text, because Arrow groups by scalars only."""
    if pa.types.is_list(values.type):
        return pa.chunked_array([pa.array([str(value) for value in values.to_pylist()], pa.string())])
    return values


def _bad_rows(column: Column, values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """True for each row that breaks the column's rules."""
    bad = pc.is_null(values) if not column.nullable else pc.and_(pc.is_null(values), False)
    if column.is_list:
        if column.bounds() or column.type in ("list<float32>", "list<float64>"):
            for low_high in (pa.chunked_array([values]) if isinstance(values, pa.Array) else values).chunks:
                low_high.validate()
            bad = pc.or_(bad, _bad_lists(column, values))
        return bad
    if pa.types.is_floating(values.type):
        bad = pc.or_(bad, pc.fill_null(pc.invert(pc.is_finite(values)), False))
    bad = _out_of_bounds(column, values, bad)
    if column.allowed is not None:
        known = pc.is_in(values, value_set=pa.array(column.allowed, values.type))
        bad = pc.or_(bad, pc.and_(pc.is_valid(values), pc.invert(known)))
    if column.max_length is not None:
        bad = pc.or_(bad, pc.fill_null(pc.greater(pc.utf8_length(values), column.max_length), False))
    return bad


def _bad_lists(column: Column, values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """True for each list with an element that is null, not finite, or out of bounds."""
    whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    elements = pc.list_flatten(whole)
    bad = pc.is_null(elements)
    if pa.types.is_floating(elements.type):
        bad = pc.or_(bad, pc.fill_null(pc.invert(pc.is_finite(elements)), False))
    parents = pc.unique(pc.filter(pc.list_parent_indices(whole), _out_of_bounds(column, elements, bad)))
    return pc.is_in(pa.array(range(len(whole)), pa.int64()), value_set=parents.cast(pa.int64()))


def _out_of_bounds(
    column: Column, values: pa.Array | pa.ChunkedArray, bad: pa.Array | pa.ChunkedArray
) -> pa.Array | pa.ChunkedArray:
    """``bad``, and those beyond a bound."""
    beyond = {">=": pc.less, ">": pc.less_equal, "<=": pc.greater}
    for _, sign, bound in column.bounds():
        bad = pc.or_(bad, pc.fill_null(beyond[sign](values, bound), False))
    return bad


@cache
def load_contract(table: str) -> Contract:
    """The contract of ``table``.

    Raises:
        ContractError: there is none, or its file is not a valid contract.
    """
    path = SCHEMAS / f"{table}.yaml"
    if not path.exists():
        raise ContractError(f"no contract for table {table!r}; valid are {', '.join(table_names())}")
    raw = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
    try:
        columns = tuple(
            Column(**{**column, "allowed": tuple(column["allowed"]) if "allowed" in column else None})
            for column in raw.pop("columns")
        )
        contract = Contract(
            table=table,
            columns=columns,
            key=tuple(raw.pop("key")),
            partition_by=tuple(raw.pop("partition_by")),
            unique=tuple(tuple(names) for names in raw.pop("unique", ())),
            **raw,
        )
    except (TypeError, KeyError) as error:
        raise ContractError(f"{path.name}: not a valid contract: {error}") from error
    unknown = {c.type for c in columns} - set(ARROW_TYPES)
    if unknown:
        raise ContractError(f"{path.name}: unknown types {sorted(unknown)}; valid are {', '.join(ARROW_TYPES)}")
    named = {*contract.key, *contract.partition_by, *(name for names in contract.unique for name in names)}
    absent = named - {c.name for c in columns}
    if absent:
        raise ContractError(
            f"{path.name}: key, unique or partition_by name columns that do not exist: {sorted(absent)}"
        )
    if contract.severity not in ("critical", "warning"):
        raise ContractError(f"{path.name}: severity {contract.severity!r}; valid are critical, warning")
    return contract


def table_names() -> tuple[str, ...]:
    """All tables that have a contract, sorted."""
    return tuple(sorted(path.stem for path in SCHEMAS.glob("*.yaml")))


def all_contracts() -> tuple[Contract, ...]:
    """All contracts, sorted by table name."""
    return tuple(load_contract(table) for table in table_names())
