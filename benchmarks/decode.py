"""Constrained beam search against Hugging Face `generate` with `prefix_allowed_tokens_fn`: same weights, one thread.

    python -m benchmarks.decode [--short] [--data ../shared/data] [--device cpu]

A generator is trained for a few epochs on Amazon Scientific (without the data folder: on random sequences) and copied
weight by weight into `LlamaForCausalLM`, which is the same function of the codes. Both then decode the same users at
beam 50. Repetitions of A and B alternate in one process; the ratio of each pair is reported with its spread.

Hugging Face has no counterpart of item head and memory: the comparison leaves them out, and what they take is reported
beside it.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import data
from benchmarks.generator import train_generator
from benchmarks.report import Claim, write
from sgrec_core.generator import Generator, ItemTrie, rank_items
from sgrec_core.generator.transformer import Transformer

BEAM = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer users and repetitions, one epoch")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the public sets")
    parser.add_argument("--users", type=int, help="users decoded per repetition")
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", type=Path, help="folder of the results; benchmarks/results by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    users = options.users or (32 if options.short else 256)
    repetitions = options.repetitions or (2 if options.short else 5)
    short_name = "-short" if options.short else ""

    source = data.scientific_or_random(options.data)
    nightly = train_generator(source, {"epochs": 1 if options.short else 15}, seed=0).to(options.device)
    model = nightly.reweighted(item_weight=0.0, memory_weight=0.0)
    trie, histories = source.trie, source.held_out("test")[0]
    rows = np.random.default_rng(0).choice(len(histories), users, replace=False)
    histories = histories[rows]
    llama = as_llama(model).to(options.device)

    theirs_fp32 = {batch: huggingface(llama, trie, batch) for batch in ((2,) if options.short else (1, 2, 4, 8))}
    ours_fp32 = ours(model, trie, bfloat16=False)
    ours_bf16 = ours(model, trie, bfloat16=True)
    whole_fp32 = ours(nightly, trie, bfloat16=False)
    whole_bf16 = ours(nightly, trie, bfloat16=True)
    for decode in (ours_fp32, ours_bf16, whole_fp32, whole_bf16):
        decode(histories[:16])

    # The best batch size of the baseline, found once; then pairs.
    for decode in theirs_fp32.values():
        decode(histories[:8])
    batch, reference = min(
        theirs_fp32.items(), key=lambda pair: min(timed(pair[1], histories[:32])[0] for _ in range(2))
    )
    decoders = {
        "huggingface fp32": reference,
        "sgrec fp32": ours_fp32,
        "sgrec bf16": ours_bf16,
        "sgrec fp32 with item head and memory": whole_fp32,
        "sgrec bf16 with item head and memory": whole_bf16,
    }
    speed: dict[str, list[float]] = {name: [] for name in decoders}
    lists: dict[str, np.ndarray] = {}
    for _ in range(repetitions):
        for name, decode in decoders.items():
            seconds, lists[name] = timed(decode, histories)
            speed[name].append(users / seconds)
    expected, found, rough, whole, rough_whole = lists.values()

    baseline = np.array(speed["huggingface fp32"])
    ratios = {name: np.array(values) / baseline for name, values in speed.items()}
    goals = {"sgrec fp32": 20.0, "sgrec bf16": 40.0}
    claims = [
        Claim(
            name=f"users per second, {name}",
            value=float(np.median(values)),
            interval=(min(values), max(values)),
            unit="users/s",
            goal="",
            met=None,
        )
        for name, values in speed.items()
    ]
    for name, goal in goals.items():
        claims.append(
            Claim(
                name=f"{name} against Hugging Face generate fp32",
                value=float(np.median(ratios[name])),
                interval=(float(ratios[name].min()), float(ratios[name].max())),
                unit="times",
                goal=f">= {goal:.0f}",
                met=bool(np.median(ratios[name]) >= goal),
            )
        )
    same_lists = float((found == expected).all(axis=1).mean())
    same_sets = common(found, expected)
    bf16_common = common(rough, found)
    whole_common = common(rough_whole, whole)
    claims += [
        Claim(
            name="fp32 lists identical in order", value=same_lists, interval=None, unit="of users", goal="", met=None
        ),
        Claim(
            name="fp32 list entries in common",
            value=same_sets,
            interval=None,
            unit="of entries",
            goal="1",
            met=same_sets == 1.0,
        ),
        Claim(
            name="bf16 list entries in common with fp32",
            value=bf16_common,
            interval=None,
            unit="of entries",
            goal=">= 0.99",
            met=bf16_common >= 0.99,
        ),
        Claim(
            name="bf16 list entries in common with fp32, with item head and memory",
            value=whole_common,
            interval=None,
            unit="of entries",
            goal="",
            met=None,
        ),
    ]
    text = f"""
{users} users, beam {BEAM}, {trie.items} items of {trie.levels} codes, one thread; generator of
{model.config.layers} layers of width {model.config.width} with {sum(p.numel() for p in llama.parameters()):,}
parameters, item head and memory apart. Hugging Face decodes in batches of {batch} (the best of those tried),
`renormalize_logits`, its own beam search and dynamic cache; ours in batches of 32. The interval is the range over
{repetitions} alternating repetitions.
"""
    details = {"speed": speed, "batch": batch, "users": users, "items": trie.items, "config": model.config.as_json()}
    page = write("decode" + short_name, claims, seeds=[0], text=text, details=details, folder=options.output)
    print(page.read_text())


def ours(model: Generator, trie: ItemTrie, *, bfloat16: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Histories [N, n] to items [N, 50] with `rank_items`."""
    return lambda histories: rank_items(model, trie, histories, width=BEAM, bfloat16=bfloat16).items.numpy()


def as_llama(model: Generator) -> "torch.nn.Module":
    """`LlamaForCausalLM` with the weights of ``model``: the same function of the same tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape, encoder = model.config, model.encoder
    assert isinstance(encoder, Transformer)
    inner = encoder.blocks[0].feed_out.in_features
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.width,
            intermediate_size=inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=len(encoder.rotations),
            rms_norm_eps=1e-6,
            rope_theta=10_000.0,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
    ).eval()
    weights = {
        "model.embed_tokens.weight": encoder.embedding.weight,
        "model.norm.weight": encoder.final_norm.weight,
        # BOS is never predicted; its row is never allowed.
        "lm_head.weight": torch.cat((encoder.codebooks.new_zeros(1, shape.width), encoder.codebooks.flatten(0, 1))),
    }
    for number, block in enumerate(encoder.blocks):
        layer = f"model.layers.{number}."
        query, key, value = block.attention.project_in.weight.chunk(3)
        gate, up = block.feed_in.weight.chunk(2)
        weights |= {
            layer + "input_layernorm.weight": block.attention_norm.weight,
            layer + "self_attn.q_proj.weight": query,
            layer + "self_attn.k_proj.weight": key,
            layer + "self_attn.v_proj.weight": value,
            layer + "self_attn.o_proj.weight": block.attention.project_out.weight,
            layer + "post_attention_layernorm.weight": block.feed_norm.weight,
            layer + "mlp.gate_proj.weight": gate,
            layer + "mlp.up_proj.weight": up,
            layer + "mlp.down_proj.weight": block.feed_out.weight,
        }
    llama.load_state_dict({name: weight.detach() for name, weight in weights.items()})
    return llama


def huggingface(llama: "torch.nn.Module", trie: ItemTrie, batch_size: int) -> Callable[[np.ndarray], np.ndarray]:
    """Histories [N, n] to items [N, 50] with `generate`, the way MiniOneRec decodes."""
    size, levels = trie.codebook_size, trie.levels
    offsets = np.arange(levels) * size + 1
    tokens = trie.codes.cpu().numpy() + offsets
    allowed: dict[tuple[int, ...], list[int]] = {}
    for row in tokens.tolist():
        for level in range(levels):
            allowed.setdefault(tuple(row[:level]), []).append(row[level])
    allowed = {prefix: sorted(set(following)) for prefix, following in allowed.items()}
    item_of = {tuple(row): item for item, row in enumerate(tokens.tolist())}

    def following(longest: int, _: int, ids: torch.Tensor) -> list[int]:
        return allowed[tuple(ids[longest:].tolist())]

    def decode(histories: np.ndarray) -> np.ndarray:
        lengths = (histories >= 0).sum(axis=1)
        order = np.argsort(lengths, kind="stable")
        result = np.empty((len(histories), BEAM), dtype=np.int64)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            longest = 1 + int(lengths[rows].max()) * levels
            prompt = np.zeros((len(rows), longest), dtype=np.int64)
            mask = np.zeros_like(prompt)
            for number, row in enumerate(rows):
                read = tokens[histories[row, : lengths[row]]].ravel()
                prompt[number, longest - len(read) :] = read
                mask[number, longest - len(read) - 1 :] = 1
            with torch.inference_mode():
                out = llama.generate(
                    input_ids=torch.from_numpy(prompt).to(llama.device),
                    attention_mask=torch.from_numpy(mask).to(llama.device),
                    prefix_allowed_tokens_fn=partial(following, longest),
                    num_beams=BEAM,
                    num_return_sequences=BEAM,
                    max_new_tokens=levels,
                    min_new_tokens=levels,
                    do_sample=False,
                    length_penalty=0.0,
                    renormalize_logits=True,
                )
            codes = out[:, longest:].cpu().tolist()
            result[rows] = np.array([item_of[tuple(row)] for row in codes]).reshape(len(rows), BEAM)
        return result

    return decode


def common(lists: np.ndarray, others: np.ndarray) -> float:
    """Share of entries of ``lists`` [N, K] that the same user's list in ``others`` holds too."""
    return float(np.mean([np.isin(row, other).mean() for row, other in zip(lists, others, strict=True)]))


def timed(decode: Callable[[np.ndarray], np.ndarray], histories: np.ndarray) -> tuple[float, np.ndarray]:
    begin = time.perf_counter()
    items = decode(histories)
    return time.perf_counter() - begin, items


if __name__ == "__main__":
    main()
