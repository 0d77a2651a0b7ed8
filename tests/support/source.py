"""Copies of the project's source, edited: what another revision of the code makes of the same home."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from sgrec_core.settings import PROJECT_ROOT


def copied(root: Path, edit: Callable[[Path], None] = lambda root: None) -> Path:
    """The project's source under ``root``, edited."""
    for folder in ("jobs", "sgrec_core", "schemas", "requirements"):
        shutil.copytree(PROJECT_ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    edit(root)
    return root


def change_gate(root: Path) -> None:
    """Another formula of A2PO's gate."""
    path = root / "sgrec_core" / "rewards" / "advantages" / "a2po.py"
    text = path.read_text()
    assert text.count("(larger + epsilon)") == 1
    path.write_text(text.replace("(larger + epsilon)", "(larger + 1.0)"))


def rewrite(root: Path) -> None:
    """Every file without its comments and in another format, every docstring another."""
    for path in [*(root / "jobs").rglob("*.py"), *(root / "sgrec_core").rglob("*.py")]:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
                node.body[0] = ast.Expr(ast.Constant("Other words."))
        path.write_text("# Another comment.\n" + ast.unparse(ast.fix_missing_locations(tree)) + "\n")


def run_in(root: Path, *arguments: str, python: str = sys.executable, **environment: str) -> str:
    """What ``python <arguments>`` prints with the source under ``root``."""
    done = subprocess.run(
        [python, *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
