"""A model in this process through transformers: for measuring what a training made of it, not for nights."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from sgrec_core.judge.engines.backends import Chat, Failed, chat_tokens, fits_into, only_token
from sgrec_core.judge.request import Usage


class Transformers:
    """Transformers as a `Backend` of `LanguageModelEngine`."""

    BATCH = 32

    def __init__(self, model: Any, tokenizer: Any, max_model_len: int):
        self.model, self.tokenizer, self.max_model_len = model, tokenizer, max_model_len
        self.usage = Usage()
        self.gone: str | None = None

    def tokens(self, chat: Chat) -> list[int]:
        return chat_tokens(self.tokenizer, chat)

    def fits(self, chat: Chat, answer_tokens: int) -> bool:
        return fits_into(self.max_model_len, self, chat, answer_tokens)

    def label_log_probs(
        self, chats: Sequence[Chat], labels: Sequence[Sequence[str]]
    ) -> list[dict[str, float] | Failed]:
        answers: list[dict[str, float] | Failed] = [{}] * len(chats)
        token_of = {
            label: only_token(self.model.name_or_path, label, self.tokenizer.encode(label, add_special_tokens=False))
            for label in {label for of_chat in labels for label in of_chat}
        }
        for places, tokens, mask in self._batches(chats):
            with torch.inference_mode():
                output = self.model(input_ids=tokens, attention_mask=mask, logits_to_keep=1)
            log_probs = output.logits[:, -1].float().log_softmax(dim=-1)
            for row, place in enumerate(places):
                ids = [token_of[label] for label in labels[place]]
                answers[place] = dict(zip(labels[place], log_probs[row, ids].tolist(), strict=True))
        return answers

    def complete(self, chats: Sequence[Chat], schema: dict[str, Any] | None, max_tokens: int) -> list[str | Failed]:
        answers: list[str | Failed] = [""] * len(chats)
        for places, tokens, mask in self._batches(chats):
            with torch.inference_mode():
                output = self.model.generate(
                    input_ids=tokens,
                    attention_mask=mask,
                    max_new_tokens=max_tokens,
                    do_sample=False,
                    pad_token_id=self.tokenizer.pad_token_id,
                )
            texts = self.tokenizer.batch_decode(output[:, tokens.shape[1] :], skip_special_tokens=True)
            for place, text in zip(places, texts, strict=True):
                answers[place] = text.strip()
        return answers

    def _batches(self, chats: Sequence[Chat]) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
        """Places, tokens padded on the left, and their mask; prompts of one length side by side."""
        self.model.eval()
        prompts = [self.tokens(chat) for chat in chats]
        order = sorted(range(len(chats)), key=lambda place: len(prompts[place]))
        device = next(self.model.parameters()).device
        for start in range(0, len(order), self.BATCH):
            places = order[start : start + self.BATCH]
            longest = len(prompts[places[-1]])
            padded = [
                [self.tokenizer.pad_token_id] * (longest - len(prompts[place])) + prompts[place] for place in places
            ]
            mask = [[0] * (longest - len(prompts[place])) + [1] * len(prompts[place]) for place in places]
            yield places, torch.tensor(padded, device=device), torch.tensor(mask, device=device)
