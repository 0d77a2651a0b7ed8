"""A language model of two layers, made on the spot: an untrained Qwen2 with its own tokenizer.

It exists so that the vLLM engine can be exercised anywhere, without a model hub. Its scores are meaningless, and
every place that shows them says so. Making it twice gives byte-identical files: the weights come from a seeded NumPy
generator, the tokenizer is trained on the rubric, and no library writes its version into a file.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sgrec_core.errors import SettingsError
from sgrec_core.judge.engines.judging_code import known_as
from sgrec_core.judge.rubric import load_rubric
from sgrec_core.runtime.code import code_digest

SEED = 20260105
VOCABULARY_SIZE = 768
END_OF_TURN = "<|im_end|>"
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", END_OF_TURN]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HIDDEN = 128
INNER = 256
LAYERS = 2
HEADS = 4
KEY_VALUE_HEADS = 2
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_VALUE_HEADS,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "use_cache": True,
    "use_sliding_window": False,
    "torch_dtype": "float32",
    "bos_token_id": 0,
    "eos_token_id": 2,
}
RECIPE = (f"{__name__}:_weights", f"{__name__}:_train_tokenizer")
"""The code that makes the files, besides the constants above."""


def tiny_model_fingerprint(corpus: Sequence[str] | None = None) -> str:
    """Digest of the recipe. The files follow from it, so that they need not exist for a version to be computed."""
    text = load_rubric(True).text if corpus is None else "\n".join(corpus)
    parts = [SEED, VOCABULARY_SIZE, SPECIAL_TOKENS, CHAT_TEMPLATE, CONFIG, text]
    code = known_as(code_digest(*RECIPE, locks=()))
    recipe = json.dumps([*parts, code] if code else parts)
    return hashlib.blake2b(recipe.encode(), digest_size=16).hexdigest()


def make_tiny_model(folder: Path, corpus: Sequence[str] | None = None) -> Path:
    """Write the model to ``folder`` unless it is there already; returns ``folder``.

    ``corpus`` is what the tokenizer is trained on; by default the rubric.

    Raises:
        SettingsError: the ``tokenizers`` or ``safetensors`` package is missing.
    """
    marker = folder / "recipe.txt"
    if marker.is_file() and marker.read_text() == tiny_model_fingerprint(corpus):
        return folder
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise SettingsError(
            f"the tiny judge model needs the package {error.name}; install it with: make judge-env"
        ) from None

    folder.mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)
    tokenizer = _train_tokenizer(load_rubric(True).text.splitlines() if corpus is None else corpus)
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(_weights(tokenizer.get_vocab_size()), folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", {**CONFIG, "vocab_size": tokenizer.get_vocab_size()})
    _write_json(folder / "generation_config.json", {"eos_token_id": CONFIG["eos_token_id"], "pad_token_id": 0})
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": CHAT_TEMPLATE,
            "eos_token": END_OF_TURN,
            "pad_token": SPECIAL_TOKENS[0],
            "model_max_length": CONFIG["max_position_embeddings"],
        },
    )
    # The marker comes last and in one step: a folder that a killed process left behind is made again.
    unfinished = folder / f"recipe.txt.{os.getpid()}"
    unfinished.write_text(tiny_model_fingerprint(corpus))
    unfinished.replace(marker)
    return folder


def _train_tokenizer(corpus: Sequence[str]):  # type: ignore[no-untyped-def]
    """A byte-level BPE over the corpus's own words."""
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise SettingsError(
            f"the tiny judge model needs the package {error.name}; install it with: make judge-env"
        ) from None
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def _weights(vocabulary: int) -> dict[str, np.ndarray]:
    """Qwen2's tensors, normal with a spread that lets different prompts give different answers."""
    generator = np.random.Generator(np.random.PCG64(SEED))

    def normal(*shape: int) -> np.ndarray:
        return (generator.standard_normal(shape) * 0.2).astype(np.float32)

    key_value = HIDDEN // HEADS * KEY_VALUE_HEADS
    tensors = {"model.embed_tokens.weight": normal(vocabulary, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name, width in (("q", HIDDEN), ("k", key_value), ("v", key_value)):
            tensors[f"{prefix}self_attn.{name}_proj.weight"] = normal(width, HIDDEN)
            tensors[f"{prefix}self_attn.{name}_proj.bias"] = normal(width)
        tensors[f"{prefix}self_attn.o_proj.weight"] = normal(HIDDEN, HIDDEN)
        tensors[f"{prefix}mlp.gate_proj.weight"] = normal(INNER, HIDDEN)
        tensors[f"{prefix}mlp.up_proj.weight"] = normal(INNER, HIDDEN)
        tensors[f"{prefix}mlp.down_proj.weight"] = normal(HIDDEN, INNER)
        tensors[f"{prefix}input_layernorm.weight"] = np.ones(HIDDEN, dtype=np.float32)
        tensors[f"{prefix}post_attention_layernorm.weight"] = np.ones(HIDDEN, dtype=np.float32)
    tensors["model.norm.weight"] = np.ones(HIDDEN, dtype=np.float32)
    return tensors


def _write_json(path: Path, tree: dict) -> None:
    path.write_text(json.dumps(tree, indent=2, sort_keys=True) + "\n")
