"""The generator: an encoder that reads histories and predicts codes, and what scores whole items beside it.

`decoding` makes one policy of all.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sgrec_core.generator.config import GeneratorConfig
from sgrec_core.generator.encoder import HistoryEncoder
from sgrec_core.generator.language_model import LanguageModel
from sgrec_core.generator.memory import TransitionMemory
from sgrec_core.generator.packing import Windows
from sgrec_core.generator.scorers import ItemHead, Scorer
from sgrec_core.generator.transformer import Transformer
from sgrec_core.generator.trie import ItemTrie


class Generator(nn.Module):
    """See the module's docstring. Weights depend on the seed of torch's global generator.

    ``encoder``: one that has learnt already; without it `config` says which is made.
    """

    def __init__(self, config: GeneratorConfig, encoder: HistoryEncoder | None = None) -> None:
        super().__init__()
        self.config = config
        fresh = LanguageModel if config.language_model is not None else Transformer
        self.encoder = fresh(config) if encoder is None else encoder
        self.item_head = ItemHead(config) if config.items else None
        self.memory = TransitionMemory(config.items, config.followers) if config.followers else None

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    @property
    def scorers(self) -> list[tuple[Scorer, float]]:
        """What scores whole items, each with its share beside those before it; see `scorers`."""
        scorers = [(self.item_head, 1.0), (self.memory, self.config.memory_weight)]
        return [(scorer, weight) for scorer, weight in scorers if scorer is not None]

    def align(self, trie: ItemTrie) -> None:
        """Make the items that the scorers know those of ``trie``; the item head tells which they knew before."""
        codes = trie.codes.to(self.device)
        if self.item_head is None or torch.equal(self.item_head.codes, codes):
            return
        rows = self.item_head.rows_of(codes)
        for scorer, _ in self.scorers:
            scorer.align(rows, codes)
        self.config = replace(self.config, items=trie.items)

    def reweighted(self, **weights: Any) -> "Generator":
        """The same parameters, shared, in a policy with other ``weights`` (``item_weight``, ``memory_weight``)."""
        same = copy.copy(self)
        same.config = replace(self.config, **weights)
        return same

    def without_memory(self) -> "Generator":
        """The same parameters, shared, in a policy that leaves the memory out: for rollouts and what learns from them.

        The memory has counted the targets of the training decisions. Of a policy that takes it into account nearly
        every group rolled out for such a decision would hold the target, by heart and not by any skill that could grow.
        """
        return self.reweighted(memory_weight=0.0)

    def remember(self, windows: Windows) -> None:
        """Have the memory, where there is one, hold the transitions of these training windows and no others."""
        if self.memory is not None:
            self.memory.count(windows)

    def in_bfloat16(self) -> "Generator":
        """A copy whose encoder reads in bfloat16, for decoding; scorers stay as they are."""
        rounded = copy.deepcopy(self).eval()
        rounded.encoder.round_to_bfloat16()
        return rounded.requires_grad_(False)

    def tensors(self) -> dict[str, Tensor]:
        """All its tensors, each once: the encoder's by their names there, a scorer's with its name before theirs."""
        state = self.state_dict()
        return {stored: state[name] for name, stored in self._stored_names().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `tensors` of another generator of this shape gave.

        Raises:
            ValueError: some are missing, or of no use.
        """
        names = self._stored_names()
        missing, unknown = set(names.values()) - set(tensors), set(tensors) - set(names.values())
        if missing or unknown:
            raise ValueError(
                f"not the tensors of such a generator: missing {sorted(missing)}, unknown {sorted(unknown)}"
            )
        self.load_state_dict({name: tensors[stored] for name, stored in names.items()})

    def _stored_names(self) -> dict[str, str]:
        """Names in the state to names in `tensors`; tied tensors have one name there."""
        first: dict[int, str] = {}
        state = self.state_dict(keep_vars=True)
        return {name: first.setdefault(id(each), name.removeprefix("encoder.")) for name, each in state.items()}
