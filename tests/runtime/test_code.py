"""Code digests: what changes them and what does not, on a small project and on copies of this one."""

import ast
import json
import sys
from pathlib import Path

import pytest
from source import change_gate, copied, rewrite, run_in

from sgrec_core.judge.engines.embedding import FORMULA
from sgrec_core.judge.engines.judging_code import KNOWN_AS, judging_code
from sgrec_core.judge.engines.language_model import ANSWERS, DECODING, WORDS
from sgrec_core.judge.engines.tiny_model import RECIPE
from sgrec_core.judge.request import ITEM_AND_STATE
from sgrec_core.runtime import code
from sgrec_core.runtime.stages import ALL_STAGES, STAGES
from sgrec_core.settings import PROJECT_ROOT

SMALL = {
    "jobs/__init__.py": "",
    "jobs/work.py": '''
"""Work."""
import numpy as np
from sgrec_core import shop
from sgrec_core.shop import Basket as Container, price
from sgrec_core.lake import Lake
from sgrec_core.errors import InputError

def traced(function):
    return function

@traced
def run(job, tax=0.2):
    """Run."""
    from sgrec_core.shop.rules import discount  # lazily

    if not job:
        raise InputError(f"no job for {tax}")
    basket = Container(Lake(job.root))
    METHODS = shop.METHODS
    return METHODS["sum"](basket) * discount(price) + np.sum(basket.weights())
''',
    "sgrec_core/__init__.py": "",
    "sgrec_core/errors.py": "class InputError(Exception): ...",
    "sgrec_core/lake.py": "class Lake:\n    def read(self): return 1",
    "sgrec_core/shop/__init__.py": """
from sgrec_core.shop.goods import Basket, total as total
from sgrec_core.shop.rules import price

METHODS = {"sum": total}
""",
    "sgrec_core/shop/goods.py": '''
from dataclasses import dataclass
from sgrec_core.shop.rules import unused

LIMIT = 10

@dataclass
class Basket:
    lake: object
    size: int = 3

    def weights(self):
        """Of what is in it."""
        return [heavy(one) for one in range(LIMIT)]

def heavy(unused):
    return unused + 1

def total(basket):
    price = 2
    return basket.size * price
''',
    "sgrec_core/shop/rules.py": """
import math

price = 7.0

def discount(value):
    return math.sqrt(value)

def unused():
    return 1
""",
}


def write(root: Path, files: dict[str, str]) -> str:
    """Digest of the small project with these files."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return code.code_digest("jobs.work:run", root=root)


def changed(tmp_path: Path, file: str, *replacements: tuple[str, str]) -> bool:
    """Whether the digest of the small project is another after the replacements in one of its files."""
    text = SMALL[file]
    for before, after in replacements:
        assert before in text
        text = text.replace(before, after)
    ast.parse(text)
    return write(tmp_path / "before", SMALL) != write(tmp_path / "after", {**SMALL, file: text})


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        pytest.param("jobs/work.py", "* discount", "/ discount", id="expression"),
        pytest.param("jobs/work.py", "tax=0.2", "tax=0.3", id="default"),
        pytest.param("jobs/work.py", "return function", "return lambda *_: 1", id="decorator"),
        pytest.param("jobs/work.py", "np.sum", "np.max", id="function of a library"),
        pytest.param("sgrec_core/shop/__init__.py", '"sum"', '"total"', id="constant"),
        pytest.param("sgrec_core/shop/goods.py", "size: int = 3", "size: int = 4", id="field"),
        pytest.param("sgrec_core/shop/goods.py", "range(LIMIT)", "range(LIMIT + 1)", id="method"),
        pytest.param("sgrec_core/shop/goods.py", "LIMIT = 10", "LIMIT = 11", id="constant read by a method"),
        pytest.param("sgrec_core/shop/goods.py", "unused + 1", "unused + 2", id="function in a comprehension"),
        pytest.param("sgrec_core/shop/goods.py", "price = 2", "price = 3", id="through a dict and a re-export"),
        pytest.param("sgrec_core/shop/goods.py", "LIMIT = 10", "LIMIT = 10\nprint(1)", id="statement of the module"),
        pytest.param("sgrec_core/shop/rules.py", "price = 7.0", "price = 7", id="re-exported constant"),
        pytest.param("sgrec_core/shop/rules.py", "math.sqrt", "math.cbrt", id="lazily imported"),
        pytest.param("sgrec_core/shop/rules.py", "import math", "import cmath as math", id="another library"),
    ],
)
def test_what_computes_changes_the_digest(tmp_path: Path, file: str, before: str, after: str) -> None:
    assert changed(tmp_path, file, (before, after))


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        pytest.param("jobs/work.py", "# lazily", "# another comment", id="comment"),
        pytest.param("jobs/work.py", '"""Run."""', '"""Runs, in other words."""', id="docstring"),
        pytest.param("sgrec_core/shop/goods.py", '        """Of what is in it."""\n', "", id="no docstring"),
        pytest.param("jobs/work.py", "job, tax=0.2", "job: object,\n   tax: float = 0.2,", id="format and type hints"),
        pytest.param("jobs/work.py", "no job for", "there is no job of", id="words of an error"),
        pytest.param("sgrec_core/lake.py", "return 1", "return 2", id="the lake"),
        pytest.param(
            "sgrec_core/shop/rules.py", "    return 1", "    return 2", id="a function that is imported alone"
        ),
        pytest.param("sgrec_core/shop/goods.py", "size: int = 3", "size: float = 3", id="hint of a dataclass"),
    ],
)
def test_what_does_not_compute_leaves_the_digest(tmp_path: Path, file: str, before: str, after: str) -> None:
    assert not changed(tmp_path, file, (before, after))


def test_the_way_to_import_does_not_count(tmp_path: Path) -> None:
    assert not changed(
        tmp_path,
        "jobs/work.py",
        ("import numpy as np", "from numpy import sum as add"),
        ("np.sum", "add"),
        ("Basket as Container", "Basket"),
        ("Container(", "Basket("),
        ("from sgrec_core import shop", "import sgrec_core.shop.goods as _, sgrec_core.shop as market"),
        ("shop.METHODS", "market.METHODS"),
    )


def test_neither_does_the_place_of_a_definition(tmp_path: Path) -> None:
    rules = SMALL["sgrec_core/shop/rules.py"]
    moved = {
        "sgrec_core/shop/rules.py": "from sgrec_core.shop.taxes import discount, price\n\nunused = None\n",
        "sgrec_core/shop/taxes.py": rules.split("def unused")[0],
    }
    assert write(tmp_path / "before", SMALL) == write(tmp_path / "after", {**SMALL, **moved})


def test_neither_does_the_place_of_one_of_two_definitions(tmp_path: Path) -> None:
    """As in a file that is cut in two."""
    goods, heavy = SMALL["sgrec_core/shop/goods.py"], "def heavy(unused):\n    return unused + 1\n"
    assert heavy in goods
    parted = {
        "sgrec_core/shop/goods.py": "from sgrec_core.shop.weights import heavy\n" + goods.replace(heavy, ""),
        "sgrec_core/shop/weights.py": heavy,
    }
    assert write(tmp_path / "before", SMALL) == write(tmp_path / "after", {**SMALL, **parted})


@pytest.mark.parametrize("package", ["sgrec_core/__init__.py", "sgrec_core/shop/__init__.py"])
def test_what_runs_where_a_package_is_imported_counts(tmp_path: Path, package: str) -> None:
    runs = {**SMALL, package: SMALL[package] + "\nimport numpy\nnumpy.seterr(all='raise')\n"}
    other = {**runs, package: runs[package].replace("raise", "ignore")}
    digests = {write(tmp_path / name, files) for name, files in (("a", SMALL), ("b", runs), ("c", other))}
    assert len(digests) == 3


HINTED = {
    "jobs/__init__.py": "",
    "sgrec_core/__init__.py": "",
    "jobs/work.py": """
from __future__ import annotations
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from sgrec_core.shapes import Box
def run(job, box: Box | None, others: "list[Box]"):
    return box.volume() + sum(one.weight for one in others) + sum(side.length for side in box.sides) + len(box)
""",
    "sgrec_core/shapes.py": """
from dataclasses import dataclass
@dataclass
class Side:
    metres: float
    @property
    def length(self):
        return 1 * self.metres
class Shape:
    density = 2.0
    @property
    def weight(self):
        return self.density * self.volume()
class Box(Shape):
    sides: tuple[Side, ...]
    def __init__(self, sides):
        self.sides = sides
    def __len__(self):
        return len(self.sides)
    def volume(self):
        return helper(self.sides)
    def unread(self):
        return 0
def helper(sides):
    return 3
""",
}


@pytest.mark.parametrize(
    ("before", "after", "counts"),
    [
        pytest.param("return helper", "return 2 * helper", True, id="method"),
        pytest.param("return 3", "return 4", True, id="what a method reads"),
        pytest.param("return self.density *", "return 2 * self.density *", True, id="inherited property"),
        pytest.param("density = 2.0", "density = 3.0", True, id="field"),
        pytest.param("return 1 * self.metres", "return 2 * self.metres", True, id="class that a field's hint names"),
        pytest.param("return len(self.sides)", "return 1 + len(self.sides)", True, id="operator"),
        pytest.param("return 0", "return 1", False, id="method that nothing reads"),
        pytest.param("self.sides = sides", "self.sides = tuple(sides)", False, id="made elsewhere"),
    ],
)
def test_of_a_class_that_hints_alone_name_counts_what_is_read(
    tmp_path: Path, before: str, after: str, counts: bool
) -> None:
    shapes = HINTED["sgrec_core/shapes.py"]
    assert shapes.count(before) == 1
    edited = {**HINTED, "sgrec_core/shapes.py": shapes.replace(before, after)}
    assert (write(tmp_path / "before", HINTED) != write(tmp_path / "after", edited)) == counts


def test_a_method_counts_by_itself_with_what_its_class_inherits(tmp_path: Path) -> None:
    def digest(value: int) -> str:
        text = f"class A:\n    def h(self): return {value}\nclass B(A):\n    def go(self): return self.h()\n"
        write(tmp_path / str(value), {**SMALL, "sgrec_core/shop/more.py": text})
        return code.code_digest("sgrec_core.shop.more:B.go", root=tmp_path / str(value))

    assert digest(1) != digest(2)


@pytest.mark.parametrize("file", ["one", "two"])
def test_both_branches_of_an_import_count(tmp_path: Path, file: str) -> None:
    files = {
        **{name: text for name, text in SMALL.items() if name.endswith("__init__.py")},
        "sgrec_core/shop/__init__.py": "",
        "sgrec_core/one.py": "def f(): return 1",
        "sgrec_core/two.py": "def f(): return 1",
        "jobs/work.py": "try:\n    from sgrec_core.one import f\nexcept ImportError:\n"
        "    from sgrec_core.two import f\ndef run(job): return f()\n",
    }
    edited = {**files, f"sgrec_core/{file}.py": "def f(): return 2"}
    assert write(tmp_path / "before", files) != write(tmp_path / "after", edited)


def test_which_of_two_definitions_is_meant_counts(tmp_path: Path) -> None:
    two = {
        **SMALL,
        "sgrec_core/shop/goods.py": SMALL["sgrec_core/shop/goods.py"] + "\ndef other(basket):\n    return 0\n",
    }
    both = '\nMETHODS = {"sum": total, "other": other}\n'
    imports = "from sgrec_core.shop.goods import Basket, other, total\nfrom sgrec_core.shop.rules import price\n"
    before = {**two, "sgrec_core/shop/__init__.py": imports + both}
    swapped = {
        **two,
        "sgrec_core/shop/__init__.py": imports + both.replace("total,", "other,").replace("other}", "total}"),
    }
    assert write(tmp_path / "before", before) != write(tmp_path / "after", swapped)


def test_a_module_that_starts_itself_counts_as_a_whole(tmp_path: Path) -> None:
    starts = SMALL["jobs/work.py"] + "\ndef start():\n    return __name__\n\nif __name__ == '__main__':\n    print(1)\n"
    starts = starts.replace("if not job", "start()\n    if not job")
    before = {**SMALL, "jobs/work.py": starts}
    after = {**SMALL, "jobs/work.py": starts.replace("print(1)", "print(2)")}
    assert write(tmp_path / "before", before) != write(tmp_path / "after", after)


def test_a_method_counts_by_itself_with_what_it_reads_of_its_class(tmp_path: Path) -> None:
    def digest(name: str, text: str) -> str:
        write(tmp_path / name, {**SMALL, "sgrec_core/shop/goods.py": text})
        return code.code_digest("sgrec_core.shop.goods:Basket.weights", root=tmp_path / name)

    text = SMALL["sgrec_core/shop/goods.py"].replace("range(LIMIT)", "range(self.size)")
    before = digest("before", text)
    assert digest("field", text.replace("size: int = 3", "size: int = 4")) != before
    assert digest("other", text.replace("lake: object", "lake: object = None")) == before


def test_locked_versions_of_the_libraries_count_where_there_are_any(tmp_path: Path) -> None:
    digests = []
    for name, lock in (
        ("none", None),
        ("one", "numpy==1.0"),
        ("two", "numpy==2.0"),
        ("other", "numpy==1.0\nscipy==1.0"),
    ):
        root = tmp_path / name
        if lock:
            (root / "requirements").mkdir(parents=True)
            (root / "requirements" / "main.lock").write_text(lock + "\n    # via sgrec\n")
        digests.append(write(root, SMALL))
    none, one, two, other = digests
    assert len({none, one, two}) == 3
    assert other == one


def test_an_unknown_definition_is_named(tmp_path: Path) -> None:
    write(tmp_path, SMALL)
    with pytest.raises(LookupError, match="jobs.work:walk"):
        code.code_digest("jobs.work:walk", root=tmp_path)


# This project


VERSIONS = """
import json
from sgrec_core.judge.engines import judge_version
from sgrec_core.runtime.code import stage_digest
from sgrec_core.runtime.stages import ALL_STAGES
from sgrec_core.settings import Settings
kinds = [(engine, mode) for engine in ("vllm", "server") for mode in ("labels", "reasoning")]
judges = [Settings(), *(Settings(judge={"engine": engine, "mode": mode}) for engine, mode in kinds)]
print(json.dumps({
    "stages": {stage.name: stage_digest(stage.name) for stage in ALL_STAGES},
    "judges": [judge_version(settings, True) for settings in judges],
}))
"""


def versions(root: Path, python: str = sys.executable) -> dict:
    """Digests of all stages and versions of all kinds of judge, as the source under ``root`` has them."""
    return json.loads(run_in(root, "-c", VERSIONS, python=python))


@pytest.fixture(scope="module")
def ours() -> dict:
    return versions(PROJECT_ROOT)


def test_another_gate_changes_the_rewards_and_what_learns_from_them_and_nothing_before(
    tmp_path: Path, ours: dict
) -> None:
    theirs = versions(copied(tmp_path / "gate", change_gate))
    assert theirs["judges"] == ours["judges"], "no call is paid for again"
    names = [stage.name for stage in STAGES]
    differing = [name for name in names if theirs["stages"][name] != ours["stages"][name]]
    # Training on fresh groups fuses too.
    assert differing == ["materialize_rewards", "train_generator"]


def test_words_and_format_of_the_whole_project_change_nothing(tmp_path: Path, ours: dict) -> None:
    assert versions(copied(tmp_path / "rewritten", rewrite)) == ours


@pytest.mark.skipif(not (PROJECT_ROOT / ".venv-judge").exists(), reason="no judge environment")
def test_the_environment_of_the_judge_computes_the_same_digests(ours: dict) -> None:
    assert versions(PROJECT_ROOT, str(PROJECT_ROOT / ".venv-judge" / "bin" / "python")) == ours


@pytest.mark.parametrize(
    ("file", "before", "after", "differing"),
    [
        pytest.param(
            "prompt.py",
            'unicodedata.normalize("NFKC", text[: 4 * limit])',
            "text[: 4 * limit]",
            {1, 2, 3, 4, 0},
            id="cleaning",
        ),
        pytest.param(
            "prompt.py", '"\\n".join(f"{number}. {text}"', '"\\n".join(f"{number}) {text}"', {1, 2, 3, 4}, id="wording"
        ),
        pytest.param("engines/embedding.py", "HALF_LIFE = 3.0", "HALF_LIFE = 2.0", {0}, id="formula"),
        pytest.param(
            "engines/language_model.py",
            "math.exp(log_probs[label] - highest)",
            "math.exp(log_probs[label])",
            {1, 3},
            id="reading",
        ),
        pytest.param(
            "engines/vllm_backend.py",
            "temperature=0.0, max_tokens=1,",
            "temperature=0.1, max_tokens=1,",
            {1},
            id="decoding",
        ),
        pytest.param("rubric.py", "return min(level", "return -min(level", {0}, id="lower end of a scale"),
        pytest.param("rubric.py", "{level.label: level.value", "{level.label: -level.value", {1, 2, 3, 4}, id="values"),
        pytest.param("rubric.py", "'reasoning' is the name", "'reasoning' is a name", set(), id="words of a validator"),
        pytest.param("engines/language_model.py", '"role": "user"', '"role": "assistant"', {1, 2, 3, 4}, id="role"),
        pytest.param("engines/backends.py", "room = max_model_len -", "room = -", {1, 2, 3, 4}, id="what fits"),
        pytest.param(
            "prompt.py", "aspect) for aspect in rubric.aspects]", "aspect) for aspect in []]", {1, 3}, id="questions"
        ),
        pytest.param("engines/language_model.py", "scores.append(score)", "scores.append(1.0)", {1, 3}, id="scores"),
        pytest.param("engines/language_model.py", "scores=scores, evidence", "evidence", {2, 4}, id="reasoned scores"),
        pytest.param("engines/vllm_backend.py", "logprobs[0][token]", "logprobs[-1][token]", {1}, id="vLLM's output"),
        pytest.param("engines/server_backend.py", "content[0].top", "content[-1].top", {3}, id="a server's output"),
        pytest.param("engines/tiny_model.py", "(shape) * 0.2", "(shape) * 0.3", {5}, id="weights made on the spot"),
        pytest.param("../items/encoder.py", "np.stack([known[key]", "np.stack([-known[key]", {0}, id="encoder"),
        pytest.param("engines/server_backend.py", "SILENCE = 32", "SILENCE = 64", set(), id="client"),
        pytest.param("calls/estimate.py", "BLOCK = ", "BLOCK = 1 + ", set(), id="estimate"),
    ],
)
def test_a_judge_is_another_by_what_words_decodes_and_reads(
    tmp_path: Path, file: str, before: str, after: str, differing: set[int]
) -> None:
    def edit(root: Path) -> None:
        path = root / "sgrec_core" / "judge" / file
        assert before in path.read_text()
        path.write_text(path.read_text().replace(before, after))

    root = copied(tmp_path / "judge", edit)
    kinds = [FORMULA, *((*WORDS, *ANSWERS[mode], *decoding) for (_, mode), decoding in DECODING.items()), RECIPE]
    found = {
        number
        for number, kind in enumerate(kinds)
        if code.reached(*ITEM_AND_STATE, *kind) != code.reached(*ITEM_AND_STATE, *kind, root=root)
    }
    assert found == differing


def test_code_that_judges_as_before_is_known_as_that_and_no_other_is(tmp_path: Path, ours: dict) -> None:
    assert judging_code(*FORMULA) in KNOWN_AS.values()

    def other_formula(root: Path) -> None:
        path = root / "sgrec_core" / "judge" / "engines" / "embedding.py"
        path.write_text(path.read_text().replace("HALF_LIFE = 3.0", "HALF_LIFE = 2.0"))

    theirs = versions(copied(tmp_path / "formula", other_formula))
    assert [ours != theirs for ours, theirs in zip(ours["judges"], theirs["judges"], strict=True)] == [
        True, False, False, False, False,
    ]  # fmt: skip


def test_what_is_not_followed_exists() -> None:
    source = code._source(PROJECT_ROOT)
    for name in (*code.MOVES, *code.COMPUTES):
        assert source.module(name), name
    for name in (*code.STANDS_FOR_ITSELF, *(name for names in code.CALLS_NONE.values() for name in names)):
        module, _, inner = name.partition(":")
        found = source.module(module)
        assert found is not None, name
        assert inner in found, name


def test_every_library_that_computes_is_locked() -> None:
    locked = {*code.locked_versions(PROJECT_ROOT / "requirements" / "main.lock")}
    locked |= {*code.locked_versions(PROJECT_ROOT / "requirements" / "judge.lock")}
    for stage in ALL_STAGES:
        libraries = code.reached(f"jobs.{stage.name}:run").libraries - sys.stdlib_module_names
        names = {code.DISTRIBUTIONS.get(name, name.lower().replace("_", "-")) for name in libraries}
        assert names <= locked, stage.name
