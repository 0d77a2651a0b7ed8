"""A generator and its catalogue as tensors and JSON, from which they are made again: what the registry keeps."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sgrec_core.generator.config import GeneratorConfig
from sgrec_core.generator.dataset import Catalogue
from sgrec_core.generator.model import Generator

CODES = "catalogue.codes"
"""Name of the codes of the catalogue's items among the tensors."""


def take_apart(model: Generator, catalogue: Catalogue) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON; the model must be aligned with the catalogue."""
    return {**model.tensors(), CODES: torch.from_numpy(catalogue.codes).int()}, {
        "kind": "generator",
        "generator": model.config.as_json(),
        "tokenizer_version": catalogue.tokenizer_version,
        "item_ids": catalogue.item_ids.to_pylist(),
    }


def rebuild(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[Generator, Catalogue]:
    """The model, ready to predict, and the catalogue of which `take_apart` gave ``tensors`` and ``config``."""
    model = Generator(GeneratorConfig(**config["generator"]))
    model.load_tensors({name: tensor for name, tensor in tensors.items() if name != CODES})
    catalogue = Catalogue(
        pa.array(config["item_ids"], pa.string()),
        tensors[CODES].numpy().astype(np.int64),
        model.config.codebook_size,
        config["tokenizer_version"],
    )
    return model.eval(), catalogue
