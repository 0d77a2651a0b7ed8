"""The generator: what reads histories as semantic ids and is decoded into real items only."""

from sgrec_core.generator.config import GeneratorConfig
from sgrec_core.generator.decoding import Beams, ItemScores, beam_search, rank_items, sample_items, score_items
from sgrec_core.generator.model import Generator
from sgrec_core.generator.training import TrainingConfig, train_supervised
from sgrec_core.generator.trie import ItemTrie

__all__ = [
    "Beams",
    "Generator",
    "GeneratorConfig",
    "ItemScores",
    "ItemTrie",
    "TrainingConfig",
    "beam_search",
    "rank_items",
    "sample_items",
    "score_items",
    "train_supervised",
]
