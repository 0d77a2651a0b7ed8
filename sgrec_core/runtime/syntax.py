"""Modules as definitions and the names that these read, from the source alone: nothing is imported.

A definition is what a module gives a name to: a function, a class with its whole body, a constant. Its text is its
syntax tree without comments, docstrings, formatting, type hints of functions and what is said to users on raising an
error; it is the same in every version of Python. Names of other definitions are no part of it: they are `references`.
"""

import ast
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

Scope = dict[str, str | None]
"""Names bound within a function: what an import binds them to, else None."""
Reference = tuple[str, ...]
"""A dotted name as it is read in a module, its first part resolved to what an import binds it to."""
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
ERRORS = "sgrec_core.errors."
MAKERS = {"__init__", "__new__", "__post_init__"}
HINTS = {"returns", "type_comment", "type_params", "ctx", "kind", "lineno"}


@dataclass
class Definition:
    """Text of a definition, and in order what it reads of its module and of others; NUL in the text stands for each."""

    text: str
    references: list[Reference]
    hints: list[Reference] = field(default_factory=list)
    """What type hints name, in order; no part of the text. A method by itself has the bases of its class here."""
    attributes: set[str] = field(default_factory=set)
    """Names of attributes that are read of whatever it is."""


class Module:
    """One source file."""

    def __init__(self, name: str, path: Path):
        self.name = name
        self.is_package = path.name == "__init__.py"
        self._nodes: dict[str, list[ast.AST]] = {}
        self.imports: Scope = {}
        self.alternatives: dict[str, list[str]] = {}
        """What else an imported name may be bound to, by a condition or where an import fails."""
        self._effects: list[ast.AST] = []
        self._main: list[ast.AST] = []
        self._definitions: dict[str, Definition] = {}
        self._of_class: dict[str, dict[str, tuple[ast.ClassDef, ast.stmt]]] = {}
        for statement in ast.parse(path.read_bytes()).body:
            self._take(statement)

    def _take(self, statement: ast.stmt) -> None:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            self.imports |= self._bindings([statement])
            return
        if isinstance(statement, ast.If):
            test = ast.unparse(statement.test)
            if test == "__name__ == '__main__'":
                self._main.append(statement)
                return
            if test.endswith("TYPE_CHECKING"):
                self.imports |= {**self._bindings(statement.body), **self.imports}
                return
        bound = self._bindings([statement])
        self.imports |= {name: target for name, target in bound.items() if target}
        if isinstance(statement, (ast.If, ast.Try)):
            for node in ast.walk(statement):
                for name, target in self._bindings([node]).items() if isinstance(node, ast.ImportFrom) else ():
                    if target and target != self.imports.get(name):
                        self.alternatives.setdefault(name, []).append(target)
        names = [name for name, target in bound.items() if not target]
        for name in names:
            self._nodes.setdefault(name, []).append(statement)
        if not names and not _is_text(statement):
            self._effects.append(statement)

    @property
    def names(self) -> list[str]:
        return list(self._nodes)

    def __contains__(self, name: str) -> bool:
        return name in self._nodes or self._member(name) is not None

    def definition(self, name: str) -> Definition:
        """Of a name, or of ``Class.member``: a method by itself, with what it reads of its class through ``self``."""
        if name not in self._definitions:
            found = self._member(name)
            if found is None:
                self._definitions[name] = self._read(self._nodes[name])
            else:
                owner, member = found
                of_class = name.split(".")[0]
                reader = _Reader(self, of_class, {*self._members(of_class)})
                reader.visit(member)
                for base in owner.bases:
                    reader.hint(base)
                self._definitions[name] = reader.done()
        return self._definitions[name]

    def members(self, name: str) -> list[str]:
        """Methods and fields of a class, by name, without what makes an object; none where ``name`` is no class."""
        return sorted(self._members(name).keys() - MAKERS)

    def bases(self, name: str) -> list[Reference]:
        """What a class inherits from."""
        reader = _Reader(self)
        for node in self._nodes.get(name, []):
            for base in node.bases if isinstance(node, ast.ClassDef) else ():
                reader.hint(base)
        return reader.hints

    def _member(self, name: str) -> tuple[ast.ClassDef, ast.stmt] | None:
        of_class, _, wanted = name.partition(".")
        return self._members(of_class).get(wanted) if wanted else None

    def _members(self, name: str) -> dict[str, tuple[ast.ClassDef, ast.stmt]]:
        """The statement that makes each member of a class, and the class."""
        if name not in self._of_class:
            owners = [node for node in self._nodes.get(name, []) if isinstance(node, ast.ClassDef)]
            members: dict[str, tuple[ast.ClassDef, ast.stmt]] = {}
            for owner in owners:
                for statement in owner.body:
                    for member in self._bindings([statement]):
                        members.setdefault(member, (owner, statement))
            self._of_class[name] = members
        return self._of_class[name]

    @cached_property
    def effects(self) -> Definition:
        """Statements that bind no name, such as a call that switches something on: they go with every definition."""
        return self._read(self._effects)

    @cached_property
    def main(self) -> Definition:
        """What runs when the module is started as a program."""
        return self._read(self._main)

    def _read(self, nodes: Iterable[ast.AST]) -> Definition:
        reader = _Reader(self)
        for node in nodes:
            reader.visit(node)
        return reader.done()

    def _bindings(self, statements: Iterable[ast.AST]) -> Scope:
        """Names that statements bind where they stand; not those within functions, classes and comprehensions."""
        bound: Scope = {}
        left: list[ast.AST] = list(statements)
        foreign: set[str] = set()
        while left:
            node = left.pop()
            if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
                bound[node.name] = None
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    bound[alias.asname or alias.name.split(".")[0]] = (
                        alias.name if alias.asname else alias.name.split(".")[0]
                    )
            elif isinstance(node, ast.ImportFrom):
                source = self._source(node)
                bound |= {alias.asname or alias.name: f"{source}:{alias.name}" for alias in node.names}
            elif isinstance(node, (ast.Global, ast.Nonlocal)):
                foreign |= set(node.names)
            elif not isinstance(node, (ast.Lambda, *COMPREHENSIONS)):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    bound.setdefault(node.id, None)
                elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
                    bound[node.name] = None
                left += ast.iter_child_nodes(node)
        return {name: target for name, target in bound.items() if name not in foreign}

    def _source(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        parts = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*parts, *([node.module] if node.module else [])])


@dataclass
class _Reader:
    """Turns nodes into the text and the references of one definition."""

    module: Module
    of_class: str = ""
    """Of the member that is read by itself."""
    members: set[str] = field(default_factory=set)
    text: list[str] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)
    hints: list[Reference] = field(default_factory=list)
    attributes: set[str] = field(default_factory=set)
    scopes: list[Scope] = field(default_factory=list)
    hints_count: bool = False
    """Whether the statements at hand are those of a class that may read its hints, as pydantic's models do."""

    def done(self) -> Definition:
        return Definition(" ".join(self.text), self.references, self.hints, self.attributes)

    def hint(self, node: ast.AST | None) -> None:
        """Take down what a type hint names."""
        left = [node] if node else []
        while left:
            part = left.pop(0)
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                with contextlib.suppress(SyntaxError):
                    left.insert(0, ast.parse(part.value, mode="eval").body)
            elif isinstance(part, (ast.Name, ast.Attribute)):
                path = ast.unparse(part).split(".")
                target = self._target(path[0])
                if target:
                    self.hints.append((target, *path[1:]))
            else:
                left = [*ast.iter_child_nodes(part), *left]

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, (ast.Name, ast.Attribute)):
            self._name(node)
        elif isinstance(node, ast.Constant):
            self.text.append(f"{type(node.value).__name__} {node.value!r}")
        elif isinstance(node, (*FUNCTIONS, ast.Lambda)):
            self._function(node)
        elif isinstance(node, COMPREHENSIONS):
            self._within(self.module._bindings(node.generators), node)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            pass  # what is imported counts where it is used
        elif isinstance(node, ast.AnnAssign) and not self.hints_count:
            # Without a value it still makes a field of a dataclass.
            self.hint(node.annotation)
            self._fields(ast.Assign(targets=[node.target], value=node.value or ast.Constant(...)))
        elif isinstance(node, ast.Raise) and self._is_for_users(node.exc):
            self.text.append("Raise")
        elif isinstance(node, ast.ClassDef):
            outside, self.hints_count = self.hints_count, not _is_dataclass(node)
            self._fields(node)
            self.hints_count = outside
        else:
            self._fields(node)

    def _fields(self, node: ast.AST) -> None:
        self.text.append("(" + type(node).__name__)
        for name, value in ast.iter_fields(node):
            if name in HINTS or value is None or value == []:
                continue
            self.text.append(name)
            if isinstance(value, list):
                for element in value:
                    if isinstance(element, ast.AST):
                        if not _is_text(element):
                            self.visit(element)
                    else:
                        self.text.append(repr(element))
            elif isinstance(value, ast.AST):
                self.visit(value)
            else:
                self.text.append(repr(value))
        self.text.append(")")

    def _name(self, node: ast.Name | ast.Attribute) -> None:
        attributes: list[str] = []
        root: ast.expr = node
        while isinstance(root, ast.Attribute):
            attributes.append(root.attr)
            root = root.value
        self.attributes |= {*attributes}
        if not isinstance(root, ast.Name):
            self.visit(root)
            self.text += [f".{name}" for name in reversed(attributes)]
            return
        name, rest = root.id, attributes[::-1]
        if not isinstance(root.ctx, ast.Load):
            self.text.append(name)
            return
        if name == "self" and rest and rest[0] in self.members:
            self._refer((f"{self.module.name}:{self.of_class}.{rest[0]}", *rest[1:]))
            return
        target = self._target(name)
        if target is None:
            self.text += [name, *(f".{attribute}" for attribute in rest)]
        else:
            self._refer((target, *rest))
            for other in self.module.alternatives.get(name, ()) if target == self.module.imports.get(name) else ():
                self._refer((other, *rest))

    def _target(self, name: str) -> str | None:
        """What a name is bound to where the reader stands; None for what a function binds, and for builtins."""
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        if name not in self.module.imports and (name in self.module or name == "__name__"):
            return f"{self.module.name}:{name}"
        return self.module.imports.get(name)

    def _refer(self, reference: Reference) -> None:
        self.text.append("\0")
        self.references.append(reference)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        every += [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
        for annotation in (*(argument.annotation for argument in every), getattr(node, "returns", None)):
            self.hint(annotation)
        body = [node.body] if isinstance(node, ast.Lambda) else node.body
        # Decorators and defaults are read outside of the function.
        self.text.append("(" + type(node).__name__)
        if not isinstance(node, ast.Lambda):
            self.text.append(node.name)
            for decorator in node.decorator_list:
                self.visit(decorator)
        for kind in ("posonlyargs", "args", "vararg", "kwonlyargs", "kwarg"):
            of_kind = getattr(arguments, kind)
            names = [argument.arg for argument in (of_kind if isinstance(of_kind, list) else [of_kind]) if argument]
            self.text += [kind, *names]
        for default in (*arguments.defaults, *arguments.kw_defaults):
            if default is None:
                self.text.append("required")
            else:
                self.visit(default)
        bound = {argument.arg: None for argument in every} | self.module._bindings(body)
        outside, self.hints_count = self.hints_count, False
        self.scopes.append(bound)
        for statement in body:
            if not _is_text(statement):
                self.visit(statement)
        self.scopes.pop()
        self.hints_count = outside
        self.text.append(")")

    def _within(self, scope: Scope, node: ast.AST) -> None:
        self.scopes.append(scope)
        self._fields(node)
        self.scopes.pop()

    def _is_for_users(self, raised: ast.expr | None) -> bool:
        """Whether what is raised ends the computation with words for people."""
        if not isinstance(raised, ast.Call) or not isinstance(raised.func, ast.Name):
            return False
        return (self.module.imports.get(raised.func.id) or "").replace(":", ".").startswith(ERRORS)


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.dump(decorator) for decorator in node.decorator_list)


def _is_text(node: ast.AST) -> bool:
    """Whether a statement is a docstring, or another text that stands for itself."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
