"""What of a table is not as its own log says: files that are lost or of another size, a log that cannot be read."""

from dataclasses import dataclass
from typing import Literal

import pyarrow.fs as pafs
from deltalake.exceptions import DeltaError

from sgrec_core.lake.contracts import load_contract
from sgrec_core.lake.storage import filesystem_of
from sgrec_core.lake.tables import Lake, check_age


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One thing that a table has lost."""

    table: str
    what: str
    """In words, to follow the name of the table."""
    file: str | None = None
    """Below the table's folder."""
    day: str | None = None
    version: int | None = None
    kind: Literal["table", "log", "file", "partition", "version"] = "file"
    """What is lost. Of a version alone: the table is older than it was, and what it holds may be whole."""

    def __str__(self) -> str:
        return f"table {self.table} {self.what}"


def damaged_files(lake: Lake, table: str) -> list[Damage] | None:
    """Files that are not what the table's log says, in the order of their names; None where there is no table.

    Raises:
        ContractError: the table comes from an older version of sgrec.
        DeltaError: its log cannot be read.
    """
    delta = lake.open(table)
    if delta is None:
        return None
    check_age(load_contract(table), delta)
    filesystem, folder = filesystem_of(lake.root)
    place = f"{folder}/{table}"
    infos = filesystem.get_file_info(pafs.FileSelector(place, recursive=True))
    there = {info.path.removeprefix(f"{place}/"): info.size for info in infos if info.is_file}
    actions = delta.get_add_actions(flatten=True)
    wanted = dict(zip(*(actions.column(name).to_pylist() for name in ("path", "size_bytes")), strict=True))
    return [
        Damage(table=table, what=f"has lost {path}", file=path, day=day_of(path), version=delta.version())
        if path not in there
        else Damage(
            table=table,
            what=f"is damaged: {path} has {there[path]} bytes instead of {size}",
            file=path,
            day=day_of(path),
            version=delta.version(),
        )
        for path, size in sorted(wanted.items())
        if there.get(path) != size
    ]


def damage_of(lake: Lake, table: str, *, written: int | None, days: set[str]) -> list[Damage]:
    """What a table has lost of what nights have put there.

    Args:
        written: the newest version that a run says it left.
        days: those of which it holds rows, by runs whose gates passed.
    """
    try:
        found = damaged_files(lake, table)
    except DeltaError as error:
        what = f"cannot be opened, its log is damaged: {' '.join(str(error).split())}"
        return [Damage(table=table, what=what, day=min(days, default=None), version=written, kind="log")]
    if found is None:
        if written is None:
            return []
        what = f"is gone, with all its days; a run has left version {written}"
        return [Damage(table=table, what=what, day=min(days, default=None), version=written, kind="table")]
    version, rewound = lake.version(table), ""
    if written is not None and version is not None and version < written:
        rewound = f"is at version {version}, and a run has left version {written}"
    contract = load_contract(table)
    # Elsewhere a day may have no rows of its own, and its gate passes.
    if contract.partition_by[:1] == ("day",) and contract.severity == "critical" and not contract.may_be_empty:
        there = {partition["day"] for partition in lake.partitions(table)}
        found += [
            Damage(
                table=table,
                what=f"has lost the partition day={day}" + (f": it {rewound}" if rewound else ""),
                day=day,
                version=written if rewound else version,
                kind="partition",
            )
            for day in sorted(days - there)
        ]
    if rewound:
        what = f"{rewound}: its newest versions are lost"
        found.append(Damage(table=table, what=what, version=written, kind="version"))
    return found


def day_of(path: str) -> str | None:
    """The day whose partition a file lies in."""
    return next((part.removeprefix("day=") for part in path.split("/") if part.startswith("day=")), None)
