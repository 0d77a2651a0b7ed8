"""A Hugging Face causal language model as the generator (MiniOneRec, arXiv 2510.24431, section 3).

Every code becomes a token of its own (``<a_12>``, ``<b_7>``, ...), added to tokenizer and embeddings; a user is read as
a prompt in words followed by the codes of the history, and the next item's codes are what the model says next. It
offers what decoding and training ask of `model.Generator`, with the prompt in the place of BOS.

Unlike MiniOneRec, every item of a sequence is a target, not the last one alone, and a code's distribution is over the
codes of its level, not over all words: decoding never leaves them. Left out: its text alignment tasks, and packing for
attention; windows of one length are read together.
"""

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sgrec_core.generator.model import LayerCache, Packing, Prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPT = "The user has interacted with these items in chronological order; predict the next one: "
CONFIG = "semantic_ids.json"


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """What a language model reads as semantic ids."""

    levels: int
    """Codes per item."""
    codebook_size: int
    max_items: int
    """Longest history in items; older items are cut."""
    prompt: str = PROMPT
    """Stands before every history."""


def code_tokens(levels: int, codebook_size: int) -> list[str]:
    """The tokens of all codes, level by level: ``<a_0>``, ``<a_1>``, ..., ``<b_0>``, ..."""
    return [f"<{chr(ord('a') + level)}_{code}>" for level in range(levels) for code in range(codebook_size)]


def _draw_like(rows: Tensor, new: Tensor) -> None:
    """Fill ``new`` [M, width] with draws that have mean and deviation of ``rows`` [N, width] in each dimension.

    The library draws with next to no deviation, so that all codes begin with one embedding: a tiny model then came to a
    loss of .73 in 40 epochs (test_language_model.py) where these brought it to .30.
    """
    new.copy_(rows.mean(dim=0) + rows.std(dim=0) * torch.randn(new.shape, device=new.device))


class LanguageModel(nn.Module):
    """A causal language model with code tokens; `load` makes one.

    Raises ValueError when the prompt has no token, or the code tokens are not neighbours in the vocabulary.
    """

    item_head = None
    memory = None
    """It speaks in codes alone."""

    def __init__(
        self, language_model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", config: LanguageModelConfig
    ) -> None:
        super().__init__()
        self.config, self.tokenizer, self.language_model = config, tokenizer, language_model
        tokens = code_tokens(config.levels, config.codebook_size)
        known = len(tokenizer)
        added = tokenizer.add_tokens(tokens)
        ids: Any = tokenizer.convert_tokens_to_ids(tokens)
        self.first_code: int = ids[0]
        if ids != list(range(ids[0], ids[0] + len(ids))):
            raise ValueError(f"the tokenizer has some of the tokens {tokens[0]} to {tokens[-1]} already, elsewhere")
        tables: Any = language_model
        # Vocabularies are often padded beyond the tokenizer; they must not shrink to it.
        if len(tokenizer) > tables.get_input_embeddings().num_embeddings:
            tables.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        if added:
            read, spoken = tables.get_input_embeddings().weight, tables.get_output_embeddings().weight
            for table in (read,) if spoken is read else (read, spoken):
                _draw_like(table.data[:known], table.data[ids[0] : ids[-1] + 1])
        self.prompt: list[int] = tokenizer(config.prompt)["input_ids"]
        if not self.prompt:
            raise ValueError(f"the prompt {config.prompt!r} has no token; the first code needs one to follow")

    @classmethod
    def load(cls, folder: Path | str, config: LanguageModelConfig | None = None) -> "LanguageModel":
        """A model in Hugging Face format, or one that `save` wrote, which needs no ``config``.

        New embeddings are drawn from torch's global generator. Weights are float32 whatever the file holds: training
        multiplies in bfloat16 but must add small steps to exact weights.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if config is None:
            config = LanguageModelConfig(**json.loads((Path(folder) / CONFIG).read_text()))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
        return cls(model, AutoTokenizer.from_pretrained(folder), config)

    def save(self, folder: Path) -> None:
        """Write model and tokenizer in Hugging Face format, and what `load` needs beside them."""
        self.language_model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        (folder / CONFIG).write_text(json.dumps(asdict(self.config), indent=1) + "\n")

    @property
    def device(self) -> torch.device:
        return self.language_model.device

    def tokens(self, codes: Tensor) -> Tensor:
        """Numbers of codes [..., L] (all levels of an item, or its first few) as `Generator.tokens` gives them."""
        return 1 + codes + torch.arange(codes.shape[-1], device=codes.device) * self.config.codebook_size

    def sequence_logits(self, codes: Tensor) -> Tensor:
        """Logits [B, n, L, codebook size] of every code of sequences of items, codes [B, n, L].

        Items after the end of a shorter sequence may hold any code.
        """
        return self.code_logits(self._sequence_states(codes))

    def packed_states(self, codes: Tensor, packing: Packing) -> Tensor:
        """Final hidden states [I, L, width] before every code of sequences of items laid end to end, codes [I, L]."""
        return torch.cat([self._sequence_states(part).flatten(0, 1) for part in packing.rectangles(codes)])

    def code_logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., L, codebook size] of all codes of an item from the hidden states [..., L, width] before them."""
        return torch.einsum("...lw,lkw->...lk", hidden, self._codebooks())

    def read_histories(self, codes: Tensor, items: Tensor) -> Prefix:
        """Read histories: codes [B, n, L], of which the first ``items`` [B] items of each row are real."""
        tokens = self._with_prompt(self.tokens(codes).flatten(1))
        read = self._read(input_ids=tokens, use_cache=True)
        length = len(self.prompt) + items * self.config.levels
        mask = torch.arange(tokens.shape[1], device=tokens.device) < length[:, None]
        hidden = read.last_hidden_state[torch.arange(len(tokens), device=tokens.device), length - 1]
        return Prefix([(layer.keys, layer.values) for layer in read.past_key_values.layers], mask, length, hidden)

    def extend(
        self, prefix: Prefix, tokens: Tensor, past: list[LayerCache] | None = None
    ) -> tuple[Tensor, list[LayerCache]]:
        """Read tokens [B, N, S] as continuations of each user's history; hidden states [B, N, S, width].

        ``past``: per layer keys and values [B, N, T, heads, d] of the tokens before these, as in `Generator.extend`.
        The N continuations are read as one row behind one copy of the history, and a mask keeps them apart.
        """
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

    def level_logits(self, hidden: Tensor, level: int) -> Tensor:
        """Logits [..., codebook size] of code ``level`` from hidden states [..., width]."""
        return hidden @ self._codebooks()[level].T

    def in_bfloat16(self) -> "LanguageModel":
        """A copy that reads in bfloat16, for decoding."""
        return copy.deepcopy(self).bfloat16().eval()

    def _codebooks(self) -> Tensor:
        """[levels, codebook size, width]: the rows of the output table that belong to codes."""
        config = self.config
        rows = self.language_model.get_output_embeddings().weight[self.first_code :]
        return rows[: config.levels * config.codebook_size].unflatten(0, (config.levels, config.codebook_size))

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
