"""Benchmarks follow the names of what they measure; none of them runs in the tests."""

import importlib
import pkgutil

import pytest

import benchmarks


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(benchmarks.__path__)])
def test_a_benchmark_imports_what_it_measures(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")
