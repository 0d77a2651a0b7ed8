"""Models in MLflow. Registered models name this package as their loader, so it stays where it is."""

from pathlib import Path
from typing import Any

from sgrec_core.registry.models import CHALLENGER, CHAMPION, CODE_TAG, ModelVersion, Registry
from sgrec_core.runtime.stages import GENERATOR

__all__ = ["CHALLENGER", "CHAMPION", "CODE_TAG", "GENERATOR", "ModelVersion", "Registry"]


def _load_pyfunc(path: str) -> Any:
    """What MLflow calls to serve a registered model: see `sgrec_core.registry.serving`."""
    from sgrec_core.registry.serving import RegisteredModel

    return RegisteredModel(Path(path))
