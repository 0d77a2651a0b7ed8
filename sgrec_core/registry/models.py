"""Models in MLflow: safetensors and JSON, what they were made from, and who is champion.

Every registered version is a pyfunc model whose loader is `sgrec_core.registry` itself, so that the artifact holds no
code and no pickle: ``model.safetensors``, ``config.json``, signature and input example. A version is known by its
fingerprint, hence a re-run that changes nothing registers nothing.

Who is champion stands in a table (`sgrec_core.registry.promotions`); MLflow's alias mirrors it.
"""

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgrec_core import __version__
from sgrec_core.errors import SgrecError
from sgrec_core.lake import Lake
from sgrec_core.registry import promotions
from sgrec_core.registry.moved import put_right
from sgrec_core.registry.promotions import Decision, Promotions
from sgrec_core.runtime.runs import git, git_revision
from sgrec_core.runtime.stages import GENERATOR
from sgrec_core.settings import Settings

if TYPE_CHECKING:
    # Torch takes seconds to import; who asks for versions alone does not pay.
    import torch

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# MLflow and Alembic narrate every database migration, MLflow every input example.
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
logging.getLogger("alembic").setLevel(logging.ERROR)

CHAMPION = "champion"
CHALLENGER = "challenger"
BELOW = Path("data") / "model"
"""Below its artifacts: pyfunc puts the folder that `Registry.register` wrote, under its own name, below ``data``."""
CODE_TAG = "sgrec.code_digest"
"""Of a version: the code of the stage that made it."""


@dataclass(frozen=True)
class ModelVersion:
    """A registered version: ``name`` and ``version`` find it, ``tags`` say where it comes from."""

    name: str
    version: str
    day: str
    fingerprint: str
    tags: dict[str, str] = field(repr=False)
    source: str = field(repr=False)
    run_id: str = field(repr=False)

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


@contextmanager
def _environment_kept() -> Iterator[None]:
    """MLflow would let children of this process inherit its registry; ours read their settings."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


class Registry:
    """The registered models of one home: MLflow on SQLite under ``<home>/mlflow``, or a server by settings."""

    def __init__(self, settings: Settings):
        # MLflow takes a second to import; only who talks to the registry pays.
        import mlflow

        self.promotions = Promotions(Lake(settings.lake_root))
        folder = settings.home.resolve() / "mlflow"
        folder.mkdir(parents=True, exist_ok=True)
        self.tracking_uri = settings.mlflow_uri or f"sqlite:///{folder}/mlflow.db"
        self._artifacts = None if settings.mlflow_uri else (folder / "artifacts").as_uri()
        if self._artifacts is not None:
            put_right(folder / "mlflow.db", self._artifacts)
        self._mlflow = mlflow
        self.client = mlflow.MlflowClient(self.tracking_uri, self.tracking_uri)

    def versions(self, name: str) -> list[ModelVersion]:
        """All versions of ``name``, oldest first; empty while there are none."""
        found = self.client.search_model_versions(f"name='{name}'", max_results=10_000)
        return sorted((_version(version) for version in found), key=lambda version: int(version.version))

    def find(self, name: str, fingerprint: str) -> ModelVersion | None:
        """The version made from exactly these inputs, or None; the newest, where an older one was damaged."""
        made = [version for version in self.versions(name) if version.fingerprint == fingerprint]
        return made[-1] if made else None

    def get(self, name: str, version_or_alias: str) -> ModelVersion:
        """One version by number or alias.

        Raises:
            SgrecError: there is none; the message lists what there is.
        """
        if (name, version_or_alias) == (GENERATOR, CHAMPION) and (serving := self.champion()) is not None:
            return serving
        versions = self.versions(name)
        wanted = version_or_alias
        if not wanted.isdigit():
            wanted = self.aliases(name).get(version_or_alias, "")
        for version in versions:
            if version.version == wanted:
                return version
        valid = [*(version.version for version in versions), *self.aliases(name)]
        raise SgrecError(
            f"{name} has no version {version_or_alias!r}; valid are {', '.join(valid) or 'none yet: run a night first'}"
        )

    def aliases(self, name: str) -> dict[str, str]:
        """Alias to version number."""
        from mlflow.exceptions import MlflowException

        try:
            return {alias: str(version) for alias, version in self.client.get_registered_model(name).aliases.items()}
        except MlflowException:
            return {}

    @_environment_kept()
    def register(
        self,
        name: str,
        *,
        day: str,
        fingerprint: str,
        tensors: "Mapping[str, torch.Tensor]",
        config: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        parameters: Mapping[str, Any] | None = None,
        tables: Mapping[str, int | None] | None = None,
        tags: Mapping[str, str] | None = None,
        example: tuple[Any, Any] | None = None,
    ) -> ModelVersion:
        """Log a run and register its model; the version that these inputs made before, if there is one that is whole.

        Args:
            fingerprint: hex digest of all that determined the tensors.
            tensors: weights, all finite; stored as safetensors.
            config: JSON that `load` gives back beside the tensors.
            tables: table name to the Delta version that was read.
            example: input and output as pandas DataFrames, from which signature and input example are made.

        Ten parameters, because a version is that many facts, most of which callers leave out.

        Raises:
            SgrecError: a weight is not finite; nothing is registered.
        """
        from mlflow.exceptions import MlflowException
        from mlflow.models import infer_signature

        from sgrec_core.registry.weights import check_finite, write_model

        found = self.find(name, fingerprint)
        if found is not None and self._is_whole(found):
            return found
        # Before a run is logged: a model that is refused leaves nothing behind.
        check_finite(tensors, of=f"{name} of night {day}")
        self._mlflow.set_tracking_uri(self.tracking_uri)
        self._mlflow.set_registry_uri(self.tracking_uri)
        if self.client.get_experiment_by_name(name) is None:
            self.client.create_experiment(name, artifact_location=self._artifacts and f"{self._artifacts}/{name}")
        self._mlflow.set_experiment(name)
        provenance = {
            "sgrec.day": day,
            "sgrec.fingerprint": fingerprint,
            "sgrec.version": __version__,
            "sgrec.git_revision": _revision(),
            **{f"sgrec.table.{table}": str(version) for table, version in (tables or {}).items()},
            **(tags or {}),
        }
        with self._mlflow.start_run(run_name=f"{name}-{day}") as run, tempfile.TemporaryDirectory() as scratch:
            self._mlflow.set_tags(provenance)
            self._mlflow.log_params({key: str(value) for key, value in (parameters or {}).items()})
            self._mlflow.log_metrics({key: float(value) for key, value in (metrics or {}).items()})
            data = Path(scratch) / "model"
            data.mkdir()
            write_model(data, tensors, config)
            model = self._mlflow.pyfunc.log_model(
                name="model",
                loader_module="sgrec_core.registry",
                data_path=str(data),
                signature=infer_signature(*example) if example else None,
                input_example=example[0] if example else None,
                pip_requirements=[f"sgrec=={__version__}"],
            )
            try:
                self.client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            created = self.client.create_model_version(
                name, source=model.model_uri, run_id=run.info.run_id, tags=provenance
            )
        return _version(created)

    def _is_whole(self, version: ModelVersion) -> bool:
        """Whether its weights can be read: a stage that is forced to make it again mends it by a version of its own."""
        try:
            self.load(version)
        except SgrecError:
            return False
        return True

    def metrics(self, version: ModelVersion) -> dict[str, float]:
        """The metrics that a version was registered with."""
        return dict(self.client.get_run(version.run_id).data.metrics)

    def load(self, version: ModelVersion) -> "tuple[dict[str, torch.Tensor], dict[str, Any]]":
        """Tensors and config of a registered version.

        Raises:
            SgrecError: a weight is not finite, or a file is lost or damaged.
        """
        from mlflow.exceptions import MlflowException

        from sgrec_core.registry.weights import read_model

        # By its place: MLflow looks a model up by its id in the registry that its process used last.
        logged = self.client.get_logged_model(version.source.removeprefix("models:/"))
        try:
            place = self._mlflow.artifacts.download_artifacts(
                artifact_uri=logged.artifact_location, tracking_uri=self.tracking_uri
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise  # a server that is away, which passes
            raise SgrecError(f"{version}: its files are gone from {logged.artifact_location}: {error}") from error
        return read_model(Path(place) / BELOW, of=str(version))

    def set_alias(self, version: ModelVersion, alias: str) -> None:
        self.client.set_registered_model_alias(version.name, alias, version.version)

    def set_alias_or_none(self, name: str, alias: str, version: str | None) -> None:
        """Let ``alias`` name a version number, or nothing."""
        if version is not None:
            self.client.set_registered_model_alias(name, alias, version)
        elif alias in self.aliases(name):
            self.client.delete_registered_model_alias(name, alias)

    def pinned_champion(self, day: str) -> ModelVersion | None:
        """The generator that night ``day`` works against: the same at every re-run."""
        version = promotions.pinned(self.promotions.read(), day)
        return None if version is None else self.get(GENERATOR, version)

    def pin_champion(self, day: str, champion: ModelVersion | None) -> None:
        """Note that night ``day`` works against ``champion``, whatever is decided later."""
        version, fingerprint = (champion.version, champion.fingerprint) if champion else (None, None)
        self.promotions.decide(lambda decisions: promotions.pin(decisions, day, version, fingerprint))

    def promote_by_night(self, version: ModelVersion, day: str, reason: str) -> str | None:
        """Make ``version`` the champion as of night ``day``, or say what stands against it."""
        against: str | None = None

        def choose(decisions: list[Decision]) -> Decision | None:
            nonlocal against
            against = promotions.why_not(decisions, version.version, day)
            if against is not None:
                return None
            return promotions.promotion_by_night(decisions, day, version.version, version.fingerprint, reason)

        self.promotions.decide(choose)
        self.champion()
        return against

    def promote(self, version: ModelVersion, reason: str = "by hand") -> str:
        """Make ``version`` the champion: it serves now and is the pin of later nights, those so far keep theirs.

        Returns:
            The day as of which it serves.
        """
        self.promotions.decide(
            lambda decisions: promotions.promotion_by_hand(
                decisions, version.day, version.version, version.fingerprint, reason
            )
        )
        self.champion()
        decided = promotions.last_change(self.promotions.read(), version.version)
        assert decided is not None
        return decided.day

    def rollback(self, reason: str = "by hand") -> tuple[ModelVersion, ModelVersion | None]:
        """Take the last promotion back; returns the demoted version and the champion that serves again, if any.

        Raises:
            SgrecError: nothing was ever promoted, or everything was taken back.
        """
        decided = self.promotions.decide(lambda decisions: promotions.roll_back(decisions, reason))
        assert decided is not None
        assert decided.version is not None
        return self.get(GENERATOR, decided.version), self.champion()

    def champion(self) -> ModelVersion | None:
        """The generator that serves. MLflow's alias, for people and servers, is put right where it says otherwise.

        Where nothing was ever decided, the alias stays: it may be all that tells whom an older sgrec promoted.
        """
        decisions = self.promotions.read()
        version = promotions.champion(decisions)
        if decisions and self.aliases(GENERATOR).get(CHAMPION) != version:
            self.set_alias_or_none(GENERATOR, CHAMPION, version)
        return None if version is None else self.get(GENERATOR, version)


def _version(version: Any) -> ModelVersion:
    return ModelVersion(
        name=version.name,
        version=str(version.version),
        day=version.tags.get("sgrec.day", ""),
        fingerprint=version.tags.get("sgrec.fingerprint", ""),
        tags=dict(version.tags),
        source=version.source,
        run_id=version.run_id,
    )


def _revision() -> str:
    """Commit of the checkout that runs, with ``-dirty`` when it has uncommitted changes; ``unknown`` outside git."""
    revision, changed = git_revision(), git("status", "--porcelain")
    if revision is None or changed is None:
        return "unknown"
    return revision + ("-dirty" if changed else "")
