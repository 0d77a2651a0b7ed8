"""From hidden states to real items: constrained beam search, and the log-probabilities of given items.

The policy is defined here, once, for search, rollouts and training: the probability of a code is the softmax at
temperature 1 over the codes that lead to a real item (the valid children in the trie); the probability of an
item is the product over its codes.

Where whole items are scored too (`scorers`: an item head, a memory of transitions) a code has two opinions: its own
logit, and the log of the probability that the scorers together give to all items that the code leads to, at the last
level one. Their weighted mean takes the logit's place; a sum would be surer of itself than either.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sgrec_core.generator.encoder import Prefix
from sgrec_core.generator.model import Generator
from sgrec_core.generator.scorers import ItemLogits, together
from sgrec_core.generator.trie import ItemTrie


@dataclass(frozen=True)
class Beams:
    """Ranked items of B users, best first; K is the count asked for, or the catalogue's size where that is less."""

    items: Tensor
    """[B, K] int64 item indices, none twice; -1 where exclusion left a user fewer than K."""
    log_probs: Tensor
    """[B, K, L] log-probability of each code; their sum ranks."""

    @property
    def scores(self) -> Tensor:
        """[B, K] log-probability of each item; -inf where the item is -1."""
        return self.log_probs.sum(dim=-1)


@dataclass(frozen=True)
class ItemScores:
    """The policy at given items."""

    log_probs: Tensor
    """[B, G, L] log-probability of each code given the codes before it; differentiable."""
    entropy: Tensor
    """[B, G, L] entropy in nats of the distribution that each code was drawn from; detached."""


def expectation(model: Generator, trie: ItemTrie) -> ItemLogits | None:
    """What the scorers expect together, to be asked for each batch; None where they have no part in the policy.

    Raises:
        ValueError: they know other items; see `Generator.align`.
    """
    scorers = model.scorers if model.config.item_weight else []
    return together(scorers, trie) if scorers else None


def read_histories(
    model: Generator, trie: ItemTrie, histories: Tensor, expected: ItemLogits | None
) -> tuple[Prefix, Tensor | None]:
    """Read histories [B, n] of item indices, oldest first, padded with -1 on the right, n at most max_items.

    Also the log of the probability that the scorers give to the items below each node, [B, nodes]; ``expected`` is what
    `expectation` gave.
    """
    lengths = (histories >= 0).sum(dim=1)
    histories = histories[:, : int(lengths.max())]
    prefix = model.encoder.read_histories(trie.codes[histories.clamp(min=0)], lengths)
    return prefix, None if expected is None else node_masses(trie, expected(prefix.hidden, histories))


def node_masses(trie: ItemTrie, logits: Tensor) -> Tensor:
    """Log of the probability of all items below each node, [B, nodes], under a softmax of logits [items, B]."""
    probability = logits.softmax(dim=0)
    inner = probability.new_zeros(trie.children.shape[0], probability.shape[1])
    for level in range(1, trie.levels):
        inner.index_add_(0, trie.path[:, level], probability)
    masses = torch.cat((inner, probability[trie.leaf_items]))
    # What is less likely than this is all alike to them, and has no gradient.
    return masses.clamp(min=1e-30).log().T


def code_log_probs(
    model: Generator, trie: ItemTrie, node: Tensor | int, logits: Tensor, masses: Tensor | None
) -> Tensor:
    """Log-probabilities [B, ..., codebook size] of the next code at ``node`` [B, ...]; -inf where it leads to no item.

    ``masses`` are those of `node_masses`.
    """
    logits = logits.float()
    if masses is not None:
        children = trie.children[node].expand_as(logits).flatten(1).long()
        logits = logits.lerp(masses.gather(1, children).view_as(logits), model.config.item_weight)
    return logits.masked_fill(~trie.valid[node], -torch.inf).log_softmax(dim=-1)


def score_items(model: Generator, trie: ItemTrie, histories: Tensor, items: Tensor) -> ItemScores:
    """Log-probabilities of items [B, G] given histories [B, n] (see `read_histories`)."""
    prefix, masses = read_histories(model, trie, histories, expectation(model, trie))
    codes, path = trie.codes[items], trie.path[items]
    first = code_log_probs(model, trie, 0, model.encoder.level_logits(prefix.hidden, 0), masses)
    distributions = [first[:, None].expand(-1, items.shape[1], -1)]
    if trie.levels > 1:
        hidden, _ = model.encoder.extend(prefix, model.encoder.tokens(codes[..., :-1]))
        for level in range(1, trie.levels):
            logits = model.encoder.level_logits(hidden[:, :, level - 1], level)
            distributions.append(code_log_probs(model, trie, path[..., level], logits, masses))
    chosen = [
        distribution.gather(-1, codes[..., level, None]).squeeze(-1) for level, distribution in enumerate(distributions)
    ]
    entropy = [torch.special.entr(distribution.detach().exp()).sum(-1) for distribution in distributions]
    return ItemScores(torch.stack(chosen, dim=-1), torch.stack(entropy, dim=-1))


@torch.inference_mode()
def beam_search(
    model: Generator,
    trie: ItemTrie,
    histories: Tensor,
    *,
    width: int,
    count: int | None = None,
    excluded: Tensor | None = None,
    expected: ItemLogits | None = None,
) -> Beams:
    """The ``count`` (default: ``width``) most probable items found by a beam of ``width``, for B users at once.

    With a beam at least as wide as the catalogue the result is exact. ``excluded`` [B, E] holds items that a user
    must not get (-1 pads); probabilities are those of the whole catalogue all the same, and the beam is widened by as
    many so that ``count`` items remain. ``expected`` is what `expectation` gave, where a caller has it already.
    """
    count = width if count is None else count
    if not 1 <= count <= width:
        raise ValueError(f"count {count} must be between 1 and the beam width {width}")
    if excluded is not None:
        excluded = excluded.sort(dim=1, descending=True).values[:, : int((excluded >= 0).sum(dim=1).max())]
        width += excluded.shape[1]
    prefix, masses = read_histories(model, trie, histories, expected or expectation(model, trie))

    first = code_log_probs(model, trie, 0, model.encoder.level_logits(prefix.hidden, 0), masses)
    chosen, code = first.topk(min(width, trie.nodes_below[0]), dim=1)
    node = trie.settled[trie.child(torch.zeros_like(code), code)]
    log_probs = F.pad(chosen[..., None], (0, trie.levels - 1))
    # Among the open beams of the level before: whose continuation a beam is.
    parent = torch.zeros_like(code)
    past = None
    for level in range(1, trie.levels):
        # A beam with a single item below it is finished: the codes that remain have probability 1. It keeps its place
        # in the competition, and the model reads only the open beams, which stand first.
        finished = trie.is_leaf(node)
        reading = int((~finished).sum(dim=1).max())
        if not reading:
            break
        order = finished.int().argsort(dim=1, stable=True)
        node, log_probs, finished = node.gather(1, order), _take(log_probs, order), finished.gather(1, order)
        order = order[:, :reading]
        token = 1 + (level - 1) * trie.codebook_size + code.gather(1, order)
        if past is not None:
            parent = parent.gather(1, order)
            past = [(_take(key, parent), _take(value, parent)) for key, value in past]
        states, past = model.encoder.extend(prefix, token[..., None], past)

        reached = log_probs.sum(dim=-1)
        open_node = node[:, :reading].masked_fill(finished[:, :reading], 0)
        step = code_log_probs(model, trie, open_node, model.encoder.level_logits(states[:, :, 0], level), masses)
        going_on = reached[:, :reading].masked_fill(finished[:, :reading], -torch.inf)[..., None] + step
        staying = reached.masked_fill(~finished, -torch.inf)
        # No beam dies on the way: either all nodes of a level are kept, or `width` of them, each with an item below.
        candidates = torch.cat((going_on.flatten(1), staying), dim=1)
        _, best = candidates.topk(min(width, trie.nodes_below[level]), dim=1)
        stays = best >= going_on[0].numel()
        beam = torch.where(stays, best - going_on[0].numel(), best // trie.codebook_size)
        code = best % trie.codebook_size
        parent = beam.clamp(max=reading - 1)
        log_probs = _take(log_probs, beam)
        log_probs[..., level] = torch.where(stays, 0.0, step.flatten(1).gather(1, best.clamp(max=step[0].numel() - 1)))
        node = node.gather(1, beam)
        node = torch.where(stays, node, trie.settled[trie.child(node.masked_fill(stays, 0), code)])

    items = trie.item(node)
    order = log_probs.sum(dim=-1).argsort(dim=1, descending=True, stable=True)
    items, log_probs = items.gather(1, order), _take(log_probs, order)
    if excluded is not None:
        banned = (items[..., None] == excluded[:, None, :]).any(dim=-1)
        items = items.masked_fill(banned, -1)
        log_probs = log_probs.masked_fill(banned[..., None], -torch.inf)
        last = banned.int().argsort(dim=1, stable=True)
        items, log_probs = items.gather(1, last), _take(log_probs, last)
    return Beams(items[:, :count], log_probs[:, :count])


@torch.inference_mode()
def sample_items(
    model: Generator, trie: ItemTrie, histories: Tensor, *, count: int, generator: torch.Generator | None = None
) -> Beams:
    """``count`` items drawn independently from the policy for each of B users, in the order drawn; items may repeat.

    ``generator`` lies on the device of the model.
    """
    prefix, masses = read_histories(model, trie, histories, expectation(model, trie))
    hidden = prefix.hidden[:, None].expand(-1, count, -1)
    node = torch.zeros(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
    chosen = []
    past = None
    for level in range(trie.levels):
        step = code_log_probs(model, trie, node, model.encoder.level_logits(hidden, level), masses)
        code = torch.multinomial(step.exp().flatten(0, 1), 1, generator=generator).view_as(node)
        chosen.append(step.gather(-1, code[..., None]).squeeze(-1))
        node = trie.child(node, code)
        if level < trie.levels - 1:
            token = 1 + level * trie.codebook_size + code
            states, past = model.encoder.extend(prefix, token[..., None], past)
            hidden = states[:, :, 0]
    return Beams(trie.item(node), torch.stack(chosen, dim=-1))


def _take(values: Tensor, parent: Tensor) -> Tensor:
    """Rows [B, W', ...] of values [B, W, ...] that ``parent`` [B, W'] names."""
    users, beams = values.shape[:2]
    rows = parent + beams * torch.arange(users, device=values.device)[:, None]
    return values.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, parent.shape)


def rank_items(
    model: Generator,
    trie: ItemTrie,
    histories: np.ndarray,
    *,
    width: int,
    count: int | None = None,
    batch_size: int = 32,
    bfloat16: bool = False,
    excluded: np.ndarray | None = None,
    progress: Callable[[int], None] | None = None,
) -> Beams:
    """`beam_search` for any number of users, histories [N, n]; results on the CPU in the order of the rows.

    Users are batched by the length of their history, so that little is padded. ``bfloat16`` reads with
    `Generator.in_bfloat16`: faster, and about one entry in 150 of a list of 50 differs, with item head and memory one
    in 430. ``excluded`` [N, E] as in `beam_search`. ``progress`` gets the number of users finished by each batch.
    Nine parameters, because each of them is `beam_search`'s or of the batches alone.
    """
    model.eval()
    if bfloat16:
        model = model.in_bfloat16()
    trie = trie.to(model.device)
    with torch.inference_mode():
        expected = expectation(model, trie)
    order = np.argsort((histories >= 0).sum(axis=1), kind="stable")
    parts = []
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = torch.as_tensor(histories[rows], dtype=torch.int64, device=model.device)
        banned = None if excluded is None else torch.as_tensor(excluded[rows], dtype=torch.int64, device=model.device)
        beams = beam_search(model, trie, batch, width=width, count=count, excluded=banned, expected=expected)
        parts.append(Beams(beams.items.cpu(), beams.log_probs.cpu()))
        if progress is not None:
            progress(len(rows))
    back = torch.from_numpy(np.argsort(order, kind="stable"))
    items = torch.cat([part.items for part in parts])
    log_probs = torch.cat([part.log_probs for part in parts])
    return Beams(items[back], log_probs[back])
