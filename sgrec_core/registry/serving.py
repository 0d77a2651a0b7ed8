"""A registered model as MLflow serves it: the ``python_function`` behind every version that sgrec registers."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from sgrec_core.errors import InputError
from sgrec_core.registry.weights import read_model


class RegisteredModel:
    """The content of ``model.safetensors`` and ``config.json`` under ``folder``; generators also predict."""

    def __init__(self, folder: Path) -> None:
        self.tensors, self.config = read_model(folder, of="the model that is served")

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Recommend items.

        Args:
            model_input: column ``history``, item ids joined by commas, oldest first.

        Returns:
            Columns ``items``, ids joined by commas, best first, and ``scores``, their log-probabilities as JSON.

        Raises:
            InputError: the model is no generator, or a history names an unknown item.
        """
        if self.config.get("kind") != "generator":
            raise InputError(f"a model of kind {self.config.get('kind')!r} does not recommend; valid is 'generator'")
        from sgrec_core.generator.recommend import Recommender

        histories = [[item for item in text.split(",") if item] for text in model_input["history"]]
        answers = Recommender(self.tensors, self.config).recommend(
            histories, count=min(10, len(self.config["item_ids"]))
        )
        return pd.DataFrame(
            {
                "items": [",".join(item for item, _ in answer) for answer in answers],
                "scores": [json.dumps([round(score, 6) for _, score in answer]) for answer in answers],
            }
        )
