"""Expressions of mappings: names, operators and a few functions, evaluated by simpleeval."""

import ast
from collections.abc import Mapping
from functools import cache
from typing import Any

import simpleeval

FUNCTIONS = {
    "int": int,
    "float": float,
    "str": str,
    "len": len,
    "round": round,
    "lower": lambda text: str(text).lower(),
    "upper": lambda text: str(text).upper(),
    "strip": lambda text, characters=None: str(text).strip(characters),
    "replace": lambda text, old, new: str(text).replace(old, new),
    "split": lambda text, by, place: str(text).split(by)[place],
    "coalesce": lambda *values: next((value for value in values if value not in (None, "")), None),
}
"""What an expression may call."""


class ExpressionError(Exception):
    """An expression has no value for a row."""


def parsed(expr: str) -> ast.AST:
    try:
        parsed = simpleeval.SimpleEval.parse(expr)
        names_of(expr)
    except (simpleeval.InvalidExpression, SyntaxError, ValueError) as error:
        raise ValueError(f"{expr!r} is no expression: {error}") from error
    return parsed


@cache
def names_of(expr: str) -> tuple[str, ...]:
    """Names that an expression reads.

    Raises:
        ValueError: it calls what is no function of ours.
    """
    tree = ast.parse(expr.strip(), mode="eval")
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    if unknown := sorted(called - FUNCTIONS.keys()):
        raise ValueError(f"no function {unknown[0]}; valid are {', '.join(FUNCTIONS)}")
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    # A comprehension names its elements itself.
    called |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return tuple(dict.fromkeys(name for name in names if name not in called and name not in ("None", "True", "False")))


def evaluate(expr: str, names: Mapping[str, Any], lenient: bool = False) -> Any:
    """The value of an expression; where ``lenient``, None if a name that it reads has none.

    Raises:
        ExpressionError: it has no value.
    """
    if expr not in _EVALUATORS:
        _EVALUATORS[expr] = simpleeval.EvalWithCompoundTypes(functions=FUNCTIONS), parsed(expr)
    evaluator, tree = _EVALUATORS[expr]
    absent = dict.fromkeys(names_of(expr)) if lenient else {}
    evaluator.names = {"None": None, "True": True, "False": False, **absent, **names}
    try:
        return evaluator.eval(expr, previously_parsed=tree)
    except Exception as error:
        if lenient and any(names.get(name) is None for name in names_of(expr)):
            return None
        raise ExpressionError(f"{expr}: {str(error)[:200]}") from error


_EVALUATORS: dict[str, tuple[Any, Any]] = {}
"""By expression; one process evaluates a row at a time."""
