"""Item text and the encoder's cache."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sgrec_core.errors import SgrecError
from sgrec_core.items.encoder import TEXT_LIMIT, TextEncoder, item_text
from sgrec_core.settings import PROJECT_ROOT

TEXTS = [
    "steel staples, 1000 count",
    "a hard start kit for compressors",
    "purple yoga mat",
    "steel staples, 1000 count",
]


@given(*[st.none() | st.text(max_size=3 * TEXT_LIMIT)] * 4)
@example(None, None, None, "0 .")
def test_item_text_is_bounded_and_printable(title, brand, category, description):
    text = item_text(title, brand, category, description)
    assert len(text) <= TEXT_LIMIT
    # A space may be left where a text ends with a space and a dot: what judges read stays as it was.
    assert text == text.lstrip()
    assert text.removesuffix(" ") == text.rstrip()
    assert text.encode("utf-8").decode("utf-8") == text
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in text)


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("<b>Nuts</b> &amp; bolts<br/>", "Nuts & bolts"),
        ("6&quot; wrench &amp;quot;pro&amp;quot;", '6" wrench "pro"'),
        ("<script>alert('x')</script>Glue<style>p {}</style>", "Glue"),
        ("length < 5 and > 3", "length < 5 and > 3"),
        ("tab\tand\x00null\u200b", "tab and null"),
        ("broken \ud800 surrogate", "broken surrogate"),
        (None, ""),
    ],
)
def test_item_text_cleans(title, expected):
    assert item_text(title, None, None, None) == expected


def test_a_long_description_leaves_title_brand_and_category():
    text = item_text("Stapler", "Stanley", "Tools,Staplers", "x" * 5_000_000)
    assert text.startswith("Stapler. Stanley. Tools,Staplers")
    assert len(text) <= TEXT_LIMIT


def test_vectors_are_unit_stable_and_read_back_bit_for_bit(tmp_path):
    encoder = TextEncoder(tmp_path)
    alone = encoder.encode(TEXTS[:1])
    together = encoder.encode(TEXTS)
    assert together.shape == (4, 384)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    # What was computed first is what everyone gets, also in another batch and for a repeated text.
    assert np.array_equal(together[0], alone[0])
    assert np.array_equal(together[0], together[3])
    assert np.array_equal(TextEncoder(tmp_path).encode(TEXTS), together)
    # Without the cache, another batch moves a vector by rounding only.
    assert (TextEncoder(None).encode(TEXTS) * together).sum(axis=1).min() > 0.999
    assert together[0] @ together[1] < 0.9


def test_a_second_writer_never_replaces_a_vector(tmp_path, monkeypatch):
    encoder = TextEncoder(tmp_path)
    compute = encoder._compute

    def compute_while_another_process_publishes(texts):
        TextEncoder(tmp_path).encode(["purple yoga mat"])
        return -compute(texts)

    monkeypatch.setattr(encoder, "_compute", compute_while_another_process_publishes)
    vectors = encoder.encode(["purple yoga mat"])
    assert np.array_equal(vectors, TextEncoder(tmp_path).encode(["purple yoga mat"]))
    assert (vectors * TextEncoder(None).encode(["purple yoga mat"])).sum() > 0.999


def test_leftovers_of_a_killed_writer_are_ignored_and_a_damaged_shard_is_named(tmp_path):
    encoder = TextEncoder(tmp_path)
    first = encoder.encode(TEXTS[:2])
    folder = tmp_path / encoder.version
    (folder / "writing-abc").write_bytes(b"half a sh")
    assert np.array_equal(encoder.encode(TEXTS[:2]), first)
    (folder / "shard-000001.safetensors").write_bytes(b"not a shard")
    with pytest.raises(SgrecError, match=r"shard-000001.safetensors.*delete the file"):
        encoder.encode(TEXTS[:2])


def test_importing_the_encoder_loads_no_model_library():
    code = "import sys, sgrec_core.items.encoder; print('sentence_transformers' in sys.modules, 'torch' in sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT_ROOT
    ).stdout
    assert shown.split() == ["False", "False"]
