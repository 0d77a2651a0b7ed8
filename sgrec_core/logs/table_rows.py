"""Rows of tables that are no files: Delta tables, and what SQLAlchemy reaches."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sgrec_core.errors import InputError

BATCH = 4096


def of_delta(path: Path) -> Iterator[dict[str, Any]]:
    from deltalake import DeltaTable

    for batch in DeltaTable(path).to_pyarrow_dataset().to_batches(batch_size=BATCH):
        yield from batch.to_pylist()


def of_database(url: str, table: str) -> Iterator[dict[str, Any]]:
    """
    Raises:
        InputError: it cannot be reached, or has no such table.
    """
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(url)
        columns = sqlalchemy.Table(table, sqlalchemy.MetaData(), autoload_with=engine)
        with engine.connect().execution_options(yield_per=BATCH) as connection:
            for row in connection.execute(sqlalchemy.select(columns)):
                yield dict(row._mapping)
    except sqlalchemy.exc.NoSuchTableError as error:
        raise InputError(f"{url}: there is no table {error}") from error
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        raise InputError(f"{url}: {' '.join(str(error).split())[:300]}") from error
