"""What the two commands say on a machine that lacks something, and that they install once."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from sgrec_core.settings import PROJECT_ROOT


def make(target: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["make", "--no-print-directory", target],
        cwd=PROJECT_ROOT, capture_output=True, text=True, env={**os.environ, **environment}, timeout=60,
    )  # fmt: skip


def fake_java(folder: Path, version: str, modules: str = "java.base@17") -> Path:
    """A Java home whose `java` answers like that version."""
    binary = folder / "bin" / "java"
    binary.parent.mkdir(parents=True)
    binary.write_text(
        "#!/bin/sh\n"
        f'case "$1" in -version) echo \'openjdk version "{version}" 2020-01-01\' >&2;;'
        f' --list-modules) echo "{modules}";; esac\n'
    )
    binary.chmod(0o755)
    return folder


@pytest.mark.parametrize("target", ["nightly", "test"])
def test_without_java_both_commands_say_so_and_how_to_get_it(target: str, tmp_path: Path) -> None:
    started = time.time()
    result = make(target, JAVA_HOME=str(tmp_path))
    assert result.returncode != 0
    assert "Java 17 or newer" in result.stderr
    assert "apt-get install openjdk-17-jdk-headless" in result.stderr
    # "Within seconds": before anything is installed or imported.
    assert time.time() - started < 20


@pytest.mark.parametrize("target", ["nightly", "test"])
@pytest.mark.parametrize("version", ["1.8.0_392", "11.0.21"])
def test_an_old_java_is_named(target: str, version: str, tmp_path: Path) -> None:
    result = make(target, JAVA_HOME=str(fake_java(tmp_path, version)))
    assert result.returncode != 0
    assert f'version "{version}"' in result.stderr
    assert "Java 17 or newer" in result.stderr


def test_a_runtime_without_the_vector_module_is_named(tmp_path: Path) -> None:
    result = make("java", JAVA_HOME=str(fake_java(tmp_path, "17.0.9")))
    assert result.returncode != 0
    assert "jdk.incubator.vector" in result.stderr


def test_an_old_python_is_named(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.1" && exit 0\nexit 1\n')
    python.chmod(0o755)
    result = make("env", PYTHON=str(python))
    assert result.returncode != 0
    assert "is Python 3.9.1. sgrec needs Python 3.11 to 3.13" in result.stderr


@pytest.mark.parametrize("target", ["env", "judge-env"])
def test_what_is_installed_is_not_installed_again(target: str) -> None:
    make(target)
    result = make(target)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""


def test_lock_files_name_no_machine_and_no_local_build() -> None:
    for lock in (PROJECT_ROOT / "requirements").glob("*.lock"):
        text = lock.read_text()
        assert "+cpu" not in text
        assert "file://" not in text
        assert "find-links" not in text
