"""The two kinds of tokenizer behind one protocol."""

import json

import pytest

from sgrec_core.errors import InputError
from sgrec_core.items import TextEncoder
from sgrec_core.items.tokenizer import Tokenizer, fit_tokenizer, kind_of_codes, load_tokenizer
from sgrec_core.settings import ItemSettings

SETTINGS = ItemSettings(levels=2, codebook_size=16)
THINGS = ["lamp", "desk", "chair", "kettle", "tent", "drill"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return TextEncoder(tmp_path_factory.mktemp("embeddings"), threads=1)


def item(number: int) -> dict:
    return {
        "item_id": f"i{number:02d}",
        "title": f"{THINGS[number % 6]} number {number}",
        "brand": None,
        "category": None,
        "description": None,
        # Two items want each tuple.
        "supplied_codes": [number // 2 % 4, number // 8],
    }


CATALOGUE = [item(number) for number in range(24)]


@pytest.fixture(params=["text", "supplied"])
def tokenizer(request: pytest.FixtureRequest, encoder: TextEncoder) -> Tokenizer:
    return fit_tokenizer(request.param, CATALOGUE[:16], SETTINGS, encoder)


def test_new_items_get_tuples_of_their_own_and_old_ones_keep_theirs(tokenizer: Tokenizer) -> None:
    old = tokenizer.resolve(tokenizer.encode(CATALOGUE[:16]), {})
    new = tokenizer.resolve(tokenizer.encode(CATALOGUE), old)
    assert new.keys() == {item["item_id"] for item in CATALOGUE[16:]}
    codes = [*old.values(), *new.values()]
    assert len(set(codes)) == len(CATALOGUE)
    assert {len(one) for one in codes} == {tokenizer.levels}
    assert max(max(one) for one in codes) < tokenizer.codebook_size


def test_a_tokenizer_survives_its_tensors(tokenizer: Tokenizer, encoder: TextEncoder) -> None:
    config = json.loads(json.dumps(tokenizer.config()))
    again = load_tokenizer(tokenizer.tensors(), config, encoder)
    assert again.config() == config
    wanted = tokenizer.encode(CATALOGUE)
    assert again.encode(CATALOGUE).codes == wanted.codes
    assert again.resolve(wanted, {}) == tokenizer.resolve(wanted, {})


def test_what_decides_codes_is_in_the_version(encoder: TextEncoder) -> None:
    versions = {
        fit_tokenizer(kind, items, settings, encoder).version
        for kind, items, settings in (
            ("text", CATALOGUE, SETTINGS),
            ("text", CATALOGUE[:20], SETTINGS),
            ("text", CATALOGUE, SETTINGS.model_copy(update={"resolver": "extra_token"})),
            ("supplied", CATALOGUE, SETTINGS),
            ("supplied", CATALOGUE[:20], SETTINGS),
        )
    }
    assert len(versions) == 5


@pytest.mark.parametrize(
    ("setting", "with_text", "kind"),
    [("auto", 5, "text"), ("auto", 4, "supplied"), ("text", 1, "text"), ("supplied", 10, "supplied")],
)
def test_codes_come_from_text_where_half_of_the_items_have_some(setting: str, with_text: int, kind: str) -> None:
    assert kind_of_codes(setting, 10, with_text) == kind


def test_codes_from_text_need_text() -> None:
    with pytest.raises(InputError, match="none of the 10 items has text; use supplied or auto"):
        kind_of_codes("text", 10, 0)
