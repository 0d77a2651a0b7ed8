"""Keeping the tables small to open: few files a partition, a fresh checkpoint, no files that nothing needs.

No row is deleted or changed: what rewards, weights and models were made of can still be read. Fingerprints, which are
Delta's transactions, stay in the checkpoint.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow.fs as pafs
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from sgrec_core.lake.contracts import table_names
from sgrec_core.lake.storage import STAGED, filesystem_of
from sgrec_core.lake.tables import Lake


@dataclass(frozen=True, kw_only=True)
class Maintained:
    """What was done to a table."""

    table: str
    files_before: int
    files: int
    deleted: int
    """Files that no version within the time to keep uses, among them those that killed jobs left."""
    was_busy: bool
    """Whether a publication came before the compaction, which then waits for the next time."""


def maintain(lake: Lake, table: str, keep: timedelta) -> Maintained | None:
    """Compact, checkpoint and vacuum ``table``; None where it does not exist.

    Publications may go on beside it: of two that meet, the publication wins or is committed again (`Lake.replace`).

    Args:
        keep: how long old versions of the table can still be read.
    """
    delta = lake.open(table)
    if delta is None:
        return None
    before, was_busy = len(delta.file_uris()), False
    try:
        delta.optimize.compact()
    except CommitFailedError:
        was_busy = True
    delta = DeltaTable(lake.uri(table))
    hours = round(keep / timedelta(hours=1))
    # A vacuum lists what it deleted for a while, and writes into the log each time; gates look at new versions again.
    deleted = _those_there(lake.uri(table), delta.vacuum(hours, enforce_retention_duration=False, full=True))
    if deleted:
        delta.vacuum(hours, dry_run=False, enforce_retention_duration=False, full=True)
    delta = DeltaTable(lake.uri(table))
    delta.create_checkpoint()
    delta.cleanup_metadata()
    files = len(delta.file_uris())
    return Maintained(table=table, files_before=before, files=files, deleted=deleted, was_busy=was_busy)


def _those_there(root: str, paths: list[str]) -> int:
    """How many of the paths below ``root`` are files."""
    filesystem, folder = filesystem_of(root)
    return sum(info.is_file for info in filesystem.get_file_info([f"{folder}/{path}" for path in paths]))


def maintain_all(lake: Lake, keep: timedelta) -> list[Maintained]:
    """`maintain` every table that was published; what killed jobs have staged goes as well."""
    _forget_staged(lake, datetime.now(UTC) - keep)
    done = (maintain(lake, table, keep) for table in table_names())
    return [table for table in done if table is not None]


def _forget_staged(lake: Lake, before: datetime) -> None:
    filesystem, path = filesystem_of(f"{lake.root}/{STAGED}")
    for folder in filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True)):
        files = filesystem.get_file_info(pafs.FileSelector(folder.path, recursive=True))
        if files and all(file.mtime < before for file in files):
            filesystem.delete_dir(folder.path)
