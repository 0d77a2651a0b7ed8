"""A registered generator serves through MLflow by itself: no lake, no code in the artifact."""

from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from sgrec_core.errors import InputError
from sgrec_core.generator import Generator, GeneratorConfig
from sgrec_core.generator.dataset import Catalogue
from sgrec_core.generator.recommend import Recommender
from sgrec_core.night.generators import register_generator
from sgrec_core.registry import Registry
from sgrec_core.runtime.stages import GENERATOR
from sgrec_core.settings import Settings


def test_mlflow_serves_what_the_generator_recommends(registry_home: Path) -> None:
    registry = Registry(Settings(home=registry_home))
    ids = pa.array([f"i{number:02d}" for number in range(20)])
    codes = np.array([[number // 5, number % 5] for number in range(20)], dtype=np.int64)
    torch.manual_seed(0)
    model = Generator(GeneratorConfig(levels=2, codebook_size=5, width=16, layers=1, heads=2, max_items=4, dropout=0.0))
    version = register_generator(
        registry, GENERATOR, model.eval(), Catalogue(ids, codes, 5, "t"),
        day="2026-01-05", fingerprint="ab" * 16, metrics={}, parameters={}, tables={}, tags={},
    )  # fmt: skip
    served = mlflow.pyfunc.load_model(version.source)
    assert served.metadata.signature.inputs.input_names() == ["history"]
    assert served.input_example is not None
    answer = served.predict(pd.DataFrame({"history": ["i03,i04", "i19"]}))
    expected = Recommender(*registry.load(version)).recommend([["i03", "i04"], ["i19"]])
    assert answer["items"].tolist() == [",".join(item for item, _ in row) for row in expected]
    # Longer than what the model reads.
    history = [f"i{number:02d}" for number in range(6)]
    recommender = Recommender(*registry.load(version))
    everything, without = (
        recommender.recommend([history, []], count=20, exclude_history=exclude) for exclude in (False, True)
    )
    assert [item for item, _ in everything[0] if item not in history] == [item for item, _ in without[0]]
    assert everything[1] == without[1]
    with pytest.raises(InputError, match="'nowhere' is not among the 20 items"):
        served.predict(pd.DataFrame({"history": ["nowhere"]}))
