"""Which generators serve and challenge, told from the table of promotions and MLflow's database without MLflow.

MLflow takes seconds to import, more than all the rest of `sgrec status`. Of a server it is asked as ever.
"""

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sgrec_core.errors import SgrecError
from sgrec_core.registry.models import BELOW, CHALLENGER, CHAMPION, Registry
from sgrec_core.registry.moved import put_right
from sgrec_core.registry.promotions import Decision, champion
from sgrec_core.runtime.stages import GENERATOR
from sgrec_core.settings import Settings


@dataclass(frozen=True)
class Known:
    """A version of the generator, and the night that made it; None where MLflow has lost it."""

    version: str
    day: str | None


def champion_and_challenger(settings: Settings, decisions: Sequence[Decision]) -> tuple[Known | None, Known | None]:
    """Who serves by ``decisions``, and who was registered last. What MLflow says otherwise is put right.

    Raises:
        SgrecError: MLflow's database is damaged, or its server does not answer.
    """
    database = settings.home.resolve() / "mlflow" / "mlflow.db"
    if settings.mlflow_uri is not None:
        return _asked(settings)
    serves = champion(decisions)
    if not database.exists():
        return (None if serves is None else Known(serves, None)), None
    try:
        can_write = _put_right(database)
        aliases, days = _read(database)
    except sqlite3.Error as error:
        raise SgrecError(f"{database} cannot be read: {error}") from error
    if decisions and can_write and aliases.get(CHAMPION) != serves:
        # A promotion was killed before it came to the alias: rare, so that it may take its time.
        return _asked(settings)
    challenger = aliases.get(CHALLENGER)
    return (
        None if serves is None else Known(serves, days.get(serves)),
        None if challenger is None else Known(challenger, days.get(challenger)),
    )


def folder_of(settings: Settings, version: str) -> Path:
    """Where the files of a version of the generator lie, in a home whose models are no server's.

    Raises:
        SgrecError: MLflow's database is lost or damaged, or does not know the version.
    """
    database = settings.home.resolve() / "mlflow" / "mlflow.db"
    question = """
        SELECT l.artifact_location FROM model_versions v JOIN logged_models l ON v.source = 'models:/' || l.model_id
        WHERE v.name = ? AND v.version = ?
    """
    try:
        _put_right(database)
        with closing(_opened(database)) as connection:
            found = connection.execute(question, (GENERATOR, int(version))).fetchone()
    except sqlite3.Error as error:
        raise SgrecError(f"{database} cannot be read: {error}") from error
    if found is None:
        raise SgrecError(f"{database} knows no {GENERATOR} version {version}")
    return Path(unquote(urlsplit(found[0]).path)) / BELOW


def _put_right(database: Path) -> bool:
    """What `Registry` does first in a home that was moved; False where nobody may write."""
    if not os.access(database, os.W_OK):
        return False
    put_right(database, (database.parent / "artifacts").as_uri())
    return True


def _opened(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=5)


def _read(database: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Alias to version, and version to day, of the generator."""
    with closing(_opened(database)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'registered_model_aliases'").fetchone():
            return {}, {}  # MLflow makes it at this moment
        aliases = connection.execute(
            "SELECT alias, version FROM registered_model_aliases WHERE name = ?", (GENERATOR,)
        ).fetchall()
        days = connection.execute(
            "SELECT version, value FROM model_version_tags WHERE name = ? AND key = 'sgrec.day'", (GENERATOR,)
        ).fetchall()
    return {alias: str(version) for alias, version in aliases}, {str(version): day for version, day in days}


def _asked(settings: Settings) -> tuple[Known | None, Known | None]:
    from mlflow.exceptions import MlflowException

    try:
        registry = Registry(settings)
        serves, challenger = registry.champion(), registry.aliases(GENERATOR).get(CHALLENGER)
        return (
            None if serves is None else Known(serves.version, serves.day),
            None if challenger is None else Known(challenger, registry.get(GENERATOR, challenger).day),
        )
    except MlflowException as error:
        raise SgrecError(f"MLflow does not say who serves: {error.error_code}") from error
