"""A home that was moved or copied is put right: MLflow keeps absolute paths, and knows no others.

Its database says where each experiment's artifacts lie. Where that is not below the home that the database is in, the
home was somewhere else when it was written, and every path below that place is written anew, in one transaction. The
home that a copy was made from is not touched.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def put_right(database: Path, artifacts: str) -> None:
    """Let the models of ``database`` lie below ``artifacts``, a URI that experiments lie below by their names."""
    if not database.exists():
        return
    with closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as connection:
        if not _elsewhere(connection, artifacts):
            return
        connection.execute("BEGIN IMMEDIATE")
        # Asked again under the lock: another process may have been here in between.
        for before in _elsewhere(connection, artifacts):
            for table, column in LOCATIONS:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (artifacts + "/", len(before) + 2, len(before) + 1, before + "/"),
                )
        connection.execute("COMMIT")


def _elsewhere(connection: sqlite3.Connection, artifacts: str) -> set[str]:
    """Other places that experiments lie below by their names."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
        return set()
    found = set()
    for name, location in connection.execute("SELECT name, artifact_location FROM experiments"):
        place = str(location).removesuffix(f"/{name}")
        if place.endswith("/mlflow/artifacts") and place not in (artifacts, location):
            found.add(place)
    return found
