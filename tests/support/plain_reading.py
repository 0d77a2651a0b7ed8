"""Whole padded sequences read without packing or cache: what the encoders' faster ways must equal."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sgrec_core.generator.encoder import HistoryEncoder
from sgrec_core.generator.language_model import LanguageModel
from sgrec_core.generator.transformer import BOS, Transformer


def sequence_states(encoder: HistoryEncoder, codes: Tensor) -> Tensor:
    """Final hidden states [B, n, L, width] before every code of sequences of items, codes [B, n, L].

    Items after the end of a shorter sequence may hold any code: attention is causal.
    """
    tokens = encoder.tokens(codes).flatten(1)[:, :-1]
    if isinstance(encoder, Transformer):
        tokens = F.pad(tokens, (1, 0), value=BOS)
        x = encoder.embedding(tokens)
        for block in encoder.blocks:
            x, _ = block(x, encoder.rotations[: tokens.shape[1]])
        return encoder.final_norm(x).unflatten(1, codes.shape[1:])
    assert isinstance(encoder, LanguageModel)
    prompt = torch.tensor(encoder.prompt).expand(len(tokens), -1)
    read = encoder.language_model.base_model(
        input_ids=torch.cat((prompt, encoder.first_code + tokens - 1), dim=1), use_cache=False
    )
    return read.last_hidden_state[:, len(encoder.prompt) - 1 :].unflatten(1, codes.shape[1:])


def sequence_logits(encoder: HistoryEncoder, codes: Tensor) -> Tensor:
    """Logits [B, n, L, codebook size] of every code of sequences of items, codes [B, n, L]."""
    return encoder.code_logits(sequence_states(encoder, codes))
