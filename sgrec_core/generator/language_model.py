"""A Hugging Face causal language model as history encoder (MiniOneRec, arXiv 2510.24431, section 3).

Every code becomes a token of its own (``<a_12>``, ``<b_7>``, ...), added to tokenizer and embeddings; a user is read as
a prompt in words followed by the codes of the history, and the next item's codes are what the model says next.

Unlike MiniOneRec, every item of a sequence is a target, not the last one alone, and a code's distribution is over the
codes of its level, not over all words: decoding never leaves them. Left out: its text alignment tasks, and packing for
attention; windows of one length are read together.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sgrec_core.generator.config import GeneratorConfig
from sgrec_core.generator.encoder import HistoryEncoder, LayerCache, Prefix
from sgrec_core.generator.packing import Packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPT = "The user has interacted with these items in chronological order; predict the next one: "
"""Stands before every history."""


def code_tokens(levels: int, codebook_size: int) -> list[str]:
    """The tokens of all codes, level by level: ``<a_0>``, ``<a_1>``, ..., ``<b_0>``, ..."""
    return [f"<{chr(ord('a') + level)}_{code}>" for level in range(levels) for code in range(codebook_size)]


def read_language_model(
    folder: Path, *, levels: int, codebook_size: int, prompt: str = PROMPT
) -> tuple["PreTrainedModel", dict[str, Any]]:
    """A model in Hugging Face format with tokens for codes, and the part of a `GeneratorConfig` that belongs to it.

    New embeddings are drawn from torch's global generator. Weights are float32 whatever the file holds: training
    multiplies in bfloat16 but must add small steps to exact weights.

    Raises:
        ValueError: the prompt has no token, or the code tokens are not neighbours in the vocabulary.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokens = code_tokens(levels, codebook_size)
    known = len(tokenizer)
    added = tokenizer.add_tokens(tokens)
    ids: list[int] = tokenizer.convert_tokens_to_ids(tokens)
    if ids != list(range(ids[0], ids[0] + len(ids))):
        raise ValueError(f"the tokenizer has some of the tokens {tokens[0]} to {tokens[-1]} already, elsewhere")
    # Vocabularies are often padded beyond the tokenizer; they must not shrink to it.
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if added:
        read, spoken = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        for table in (read,) if spoken is read else (read, spoken):
            _draw_like(table.data[:known], table.data[ids[0] : ids[-1] + 1])
    words: list[int] = tokenizer(prompt)["input_ids"]
    if not words:
        raise ValueError(f"the prompt {prompt!r} has no token; the first code needs one to follow")
    shape = json.loads(model.config.to_json_string())
    # Which version of the library wrote it says nothing about the model.
    shape.pop("transformers_version", None)
    return model, {
        "width": model.config.hidden_size,
        "layers": model.config.num_hidden_layers,
        "heads": model.config.num_attention_heads,
        "dropout": 0.0,
        "language_model": {"shape": shape, "prompt": words, "first_code": ids[0]},
    }


def _draw_like(rows: Tensor, new: Tensor) -> None:
    """Fill ``new`` [M, width] with draws that have mean and deviation of ``rows`` [N, width] in each dimension.

    The library draws with next to no deviation, so that all codes begin with one embedding: a tiny model then came to a
    loss of .73 in 40 epochs (test_language_model.py) where these brought it to .30.
    """
    new.copy_(rows.mean(dim=0) + rows.std(dim=0) * torch.randn(new.shape, device=new.device))


class LanguageModel(HistoryEncoder):
    """A causal language model with code tokens, its prompt in the place of BOS.

    ``model``: as `read_language_model` gave it with the configuration; without it weights are random.
    """

    compiles = False

    def __init__(self, config: GeneratorConfig, model: "PreTrainedModel | None" = None) -> None:
        super().__init__(config)
        from transformers import AutoConfig, AutoModelForCausalLM

        facts = config.language_model
        assert facts is not None
        self.first_code: int = facts["first_code"]
        self.prompt: list[int] = facts["prompt"]
        if model is None:
            shape = AutoConfig.for_model(**facts["shape"])
            model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32, attn_implementation="sdpa")
        self.language_model = model

    @property
    def codebooks(self) -> Tensor:  # type: ignore[override]  # a view of the model's own table
        """The rows of the output table that belong to codes."""
        rows = self.language_model.get_output_embeddings().weight[self.first_code :]
        return rows[: self.levels * self.codebook_size].unflatten(0, (self.levels, self.codebook_size))

    def packed_states(self, codes: Tensor, packing: Packing) -> Tensor:
        return torch.cat([self._sequence_states(part).flatten(0, 1) for part in packing.rectangles(codes)])

    def read_histories(self, codes: Tensor, items: Tensor) -> Prefix:
        tokens = self._with_prompt(self.tokens(codes).flatten(1))
        read = self._read(input_ids=tokens, use_cache=True)
        length = len(self.prompt) + items * self.levels
        mask = torch.arange(tokens.shape[1], device=tokens.device) < length[:, None]
        hidden = read.last_hidden_state[torch.arange(len(tokens), device=tokens.device), length - 1]
        return Prefix([(layer.keys, layer.values) for layer in read.past_key_values.layers], mask, length, hidden)

    def extend(
        self, prefix: Prefix, tokens: Tensor, past: list[LayerCache] | None = None
    ) -> tuple[Tensor, list[LayerCache]]:
        """The N continuations are read as one row behind one copy of the history, and a mask keeps them apart."""
        from transformers import DynamicCache

        batch, continuations, new = tokens.shape
        seen = 0 if past is None else past[0][0].shape[2]
        cache = DynamicCache()
        for index, (key, value) in enumerate(prefix.layers):
            if past is not None:
                # [B, N, T, heads, d] behind [B, heads, P, d]
                key, value = (
                    torch.cat((before, own.flatten(1, 2).transpose(1, 2)), dim=2)
                    for before, own in zip((key, value), past[index], strict=True)
                )
            cache.update(key, value, index)

        number = torch.arange(continuations, device=tokens.device)
        step = torch.arange(new, device=tokens.device)
        asking = torch.stack((number.repeat_interleave(new), step.repeat(continuations)))
        same = asking[0][:, None] == number.repeat_interleave(seen)
        own = (asking[0][:, None] == asking[0]) & (asking[1][:, None] >= asking[1])
        visible = torch.cat(
            (
                prefix.mask[:, None].expand(-1, continuations * new, -1),
                torch.cat((same, own), dim=1).expand(batch, -1, -1),
            ),
            dim=2,
        )
        hidden_from = torch.finfo(prefix.hidden.dtype).min
        mask = torch.zeros_like(visible, dtype=prefix.hidden.dtype).masked_fill(~visible, hidden_from)
        read = self._read(
            input_ids=self.first_code + tokens.flatten(1) - 1,
            attention_mask=mask[:, None],
            position_ids=prefix.length[:, None] + seen + asking[1],
            past_key_values=cache,
            use_cache=True,
        )
        after = []
        for index, layer in enumerate(read.past_key_values.layers):
            # The last N * S of [B, heads, P + N * T + N * S, d]
            fresh = [
                part[:, :, -continuations * new :].transpose(1, 2).unflatten(1, (continuations, new))
                for part in (layer.keys, layer.values)
            ]
            if past is not None:
                fresh = [torch.cat(pair, dim=2) for pair in zip(past[index], fresh, strict=True)]
            after.append((fresh[0], fresh[1]))
        return read.last_hidden_state.unflatten(1, (continuations, new)), after

    def _sequence_states(self, codes: Tensor) -> Tensor:
        """[B, n, L, width] of codes [B, n, L]."""
        tokens = self._with_prompt(self.tokens(codes).flatten(1)[:, :-1])
        hidden = self._read(input_ids=tokens, use_cache=False).last_hidden_state[:, len(self.prompt) - 1 :]
        return hidden.unflatten(1, codes.shape[1:])

    def _with_prompt(self, tokens: Tensor) -> Tensor:
        prompt = torch.tensor(self.prompt, device=tokens.device).expand(len(tokens), -1)
        return torch.cat((prompt, self.first_code + tokens - 1), dim=1)

    def _read(self, **inputs: Any) -> Any:
        """The transformer without its output table."""
        return self.language_model.base_model(**inputs)
