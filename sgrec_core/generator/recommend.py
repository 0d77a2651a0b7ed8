"""Serving: histories in, ranked items out, from the content of a registered generator alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from sgrec_core.errors import InputError
from sgrec_core.generator.dataset import history_matrix, whole_histories
from sgrec_core.generator.decoding import rank_items
from sgrec_core.generator.stored import rebuild


class Recommender:
    """A registered generator with its catalogue: ``tensors`` and ``config`` as the registry loads them."""

    def __init__(self, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        self.model, self.catalogue = rebuild(tensors, config)
        self.leaves_out_history = bool(config.get("leave_out_history", False))
        """Whether users of the source that it learnt from never repeat an item."""

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        *,
        count: int = 10,
        beam: int = 50,
        exclude_history: bool | None = None,
    ) -> list[list[tuple[str, float]]]:
        """The ``count`` best items of each history (oldest first), with their log-probabilities.

        ``exclude_history`` leaves out the items of the history; by default where users never repeat one.

        Raises:
            InputError: an item of a history is not in the catalogue; the message shows some that are.
        """
        lists = pa.array([list(history) for history in histories], pa.list_(pa.string()))
        unknown = self.catalogue.index(lists.flatten()) < 0
        if unknown.any():
            examples = ", ".join(self.catalogue.ids(np.arange(min(3, len(self.catalogue)))))
            raise InputError(
                f"item {lists.flatten()[int(unknown.argmax())].as_py()!r} is not among the {len(self.catalogue)} items"
                f" of this generator; valid are ids like {examples}"
            )
        matrix = history_matrix(lists, self.catalogue, self.model.config.max_items)
        leave_out = self.leaves_out_history if exclude_history is None else exclude_history
        beams = rank_items(
            self.model,
            self.catalogue.trie,
            matrix,
            width=max(beam, count),
            count=count,
            excluded=whole_histories(lists, self.catalogue) if leave_out else None,
        )
        # Where few items are left to recommend, -1 stands at the end.
        found = [(items[items >= 0], scores) for items, scores in zip(beams.items.numpy(), beams.scores, strict=True)]
        return [list(zip(self.catalogue.ids(row), scores[: len(row)].tolist(), strict=True)) for row, scores in found]
