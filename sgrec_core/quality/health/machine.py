"""Checks of what a night needs before it has a home: Java, libraries, a judge, raw logs, room, the time."""

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

import psutil

from sgrec_core.errors import InputError
from sgrec_core.judge.engines.backends import served_model
from sgrec_core.lake.spark import VECTORS, check_java, has_java_module
from sgrec_core.logs import landing as raw
from sgrec_core.night.airflow import check_interpreters
from sgrec_core.quality.commands import sgrec
from sgrec_core.quality.health.answer import (
    SECONDS,
    SERVER_SECONDS,
    SLACK_SECONDS,
    Answer,
    few,
    folder_there,
    line,
    make,
)
from sgrec_core.runtime.code import locked_versions
from sgrec_core.runtime.layout import LAYOUT, layout_of
from sgrec_core.settings import PROJECT_ROOT, Settings

LEAST_DISK, LOW_DISK = 1 << 30, 5 << 30
"""Free bytes below which a night cannot run, and below which a week of them may not."""
KEY = "OPENAI_API_KEY"


def home_of_this_version(settings: Settings) -> Answer:
    """Whether the home can be written to, a night has begun in it, and this version of sgrec may go on there."""
    home = settings.home.resolve()
    there = folder_there(home)
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        mend = f"make it writable for {psutil.Process().username()}, or set SGREC_HOME to a folder that is"
        return Answer("failed", f"{there} cannot be written to: {error.strerror}", mend)
    if not (home / "source.json").exists():
        return Answer("warning", f"no night was run in {home}", sgrec(settings, "nightly"))
    layout = layout_of(home)
    if layout < LAYOUT:
        what = f"{home} was made by an older version of sgrec (layout {layout}, here {LAYOUT})"
        return Answer("failed", what, sgrec(settings, "migrate"))
    if layout > LAYOUT:
        what = f"{home} was made by a newer version of sgrec (layout {layout}, here {LAYOUT})"
        return Answer("failed", what, "use that version: update the checkout, then " + make("env"))
    return Answer("ok", f"{home}, {settings.input}")


def _java(settings: Settings) -> Answer:
    check_java()
    if not has_java_module(VECTORS):
        what = f"Java lacks the module {VECTORS} that Spark loads (a cut-down runtime?)"
        return Answer("failed", what, "apt-get install openjdk-17-jdk-headless, or set JAVA_HOME to a whole JDK")
    return Answer("ok", f"runs, with {VECTORS}")


def _libraries(settings: Settings) -> Answer:
    # The first on the path is imported. A build for one kind of machine is the version: 2.13.0+cpu is 2.13.0.
    there = reversed(list(importlib.metadata.distributions()))
    installed = {_name(one.name): one.version.partition("+")[0] for one in there}
    locked = locked_versions(PROJECT_ROOT / "requirements" / "main.lock")
    others = [
        f"{name} {installed.get(name, 'missing')} instead of {version}"
        for name, version in sorted(locked.items())
        if installed.get(name) != version
    ]
    if others:
        return Answer("failed", f"not as in requirements/main.lock: {few(others)}", make("env"))
    return Answer("ok", f"{len(locked)} as in requirements/main.lock")


def _name(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _interpreters(settings: Settings) -> Answer:
    check_interpreters(settings)
    return Answer("ok", ", ".join(sorted(set(settings.interpreters.model_dump().values()))))


def _judge(settings: Settings) -> Answer:
    if settings.judge.engine == "server":
        return _judge_server(settings)
    if settings.judge.engine == "embedding":
        return Answer("ok", "embedding, in process")
    interpreter = PROJECT_ROOT / settings.interpreters.judge
    command = [str(interpreter), "-c", "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"]
    try:
        is_there = subprocess.run(command, capture_output=True, timeout=SECONDS - 1).returncode == 0
    except (OSError, subprocess.TimeoutExpired) as error:
        return Answer("failed", f"{interpreter} does not run: {type(error).__name__}", make("judge-env"))
    if not is_there:
        return Answer("failed", f"{interpreter} has no vLLM", make("judge-env"))
    return Answer("ok", f"vLLM in {interpreter}")


def _judge_server(settings: Settings) -> Answer:
    """Its list of models, which costs nothing. Of its URL the host alone is told: keys stand in some."""
    judge, parts = settings.judge, urlsplit(settings.judge.server_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return Answer("failed", "SGREC_JUDGE__SERVER_URL is no URL", "SGREC_JUDGE__SERVER_URL=http://HOST:PORT/v1")
    user, _, host = parts.netloc.rpartition("@")
    place = f"{parts.scheme}://{host}"
    url = urlunsplit(parts._replace(netloc=host, path=parts.path.rstrip("/") + "/models"))
    # As the client that nights use: a name and a password in the URL come before the key.
    key = f"Basic {b64encode(unquote(user).encode()).decode()}" if user else f"Bearer {os.environ.get(KEY, 'none')}"
    start = "start the server, or set SGREC_JUDGE__SERVER_URL to the one that runs"
    try:
        request = urllib.request.Request(url, headers={"Authorization": key})
        with urllib.request.urlopen(request, timeout=SERVER_SECONDS) as response:
            served = sorted(str(model["id"]) for model in json.load(response)["data"])
    except urllib.error.HTTPError as error:
        mend = f"set {KEY} to a key that it takes" if error.code in (401, 403) else start
        return Answer("failed", f"{place} answers {error.code} {error.reason}", mend)
    except (OSError, ValueError, KeyError, TypeError, HTTPException) as error:
        # Not the error's own words, which may hold the URL.
        why = error.reason if isinstance(error, urllib.error.URLError) else type(error).__name__
        return Answer("failed", f"{place} does not answer as a judge: {why}", start)
    if served_model(judge) not in served:
        what = f"{place} does not serve {served_model(judge)!r}; it serves {few(served) or 'nothing'}"
        return Answer("failed", what, "set SGREC_JUDGE__SERVED_NAME to a name that it serves")
    return Answer("ok", f"{place} serves {served_model(judge)}")


def _landing(settings: Settings) -> Answer:
    """Whether the newest day of ``logs:PATH`` is there as whoever wrote it says."""
    from sgrec_core.logs.adaptors import parse_source
    from sgrec_core.logs.parsing import Options, missing_files

    source = parse_source(settings.input)
    if source.kind != "logs" or source.path is None:
        return Answer("ok", f"{settings.input}: nothing has to land")
    folders = sorted(source.path.glob("day=????-??-??"))
    if not folders:
        return Answer("failed", f"no day has landed in {source.path}", f"land one: {raw.LAYOUT}")
    folder, day = folders[-1], folders[-1].name.removeprefix("day=")
    mapping = Options.of(settings).mapping
    try:
        landed = raw.landed(source.path, day, needs_catalogue=not (mapping and mapping.catalogue_from_events))
    except InputError as error:
        return Answer("failed", line(error), f"land {day} whole, and write {raw.MANIFEST} or {raw.SUCCESS} last")
    lost = [f"{one.file}: {one.detail}" for one in missing_files(landed, source.path, day)]
    lost += [f"{one.name}: {one.why}" for one in landed.left_out if one.is_lost]
    if lost:
        return Answer("failed", f"{day} is not whole: {few(lost)}", f"land them in {folder}, or mend {raw.MANIFEST}")
    marks = {folder / raw.MANIFEST, folder / raw.SUCCESS, *(file.path.parent / raw.SUCCESS for file in landed.files)}
    if not any(mark.is_file() for mark in marks):
        what = f"nothing says that {day} is whole: neither {raw.MANIFEST} nor {raw.SUCCESS}"
        return Answer("warning", what, f"when it is: touch {shlex.quote(str(folder / raw.SUCCESS))}")
    return Answer("ok", f"{day} is whole, {len(landed.files)} files")


def _disk(settings: Settings) -> Answer:
    there = folder_there(settings.home.resolve())
    free = shutil.disk_usage(there).free
    what = f"{free / 2**30:,.1f} GiB free at {there}"
    if free >= LOW_DISK:
        return Answer("ok", what)
    mend = f"make room; of sgrec's own: {sgrec(settings, 'maintain')}"
    return Answer("failed" if free < LEAST_DISK else "warning", what, mend)


def _memory(settings: Settings) -> Answer:
    memory, asked = psutil.virtual_memory(), re.fullmatch(r"(\d+)([kmgt]?)b?", settings.spark_memory.lower())
    if asked is None:
        return Answer("failed", f"SGREC_SPARK_MEMORY={settings.spark_memory} is no size", "SGREC_SPARK_MEMORY=3g")
    wanted = int(asked[1]) * 1024 ** "_kmgt".find(asked[2] or "_")
    what = f"{memory.available / 2**30:,.1f} of {memory.total / 2**30:,.1f} GiB free, Spark takes {wanted / 2**30:,.1f}"
    if wanted > memory.total:
        return Answer("failed", what, "SGREC_SPARK_MEMORY=2g, or a larger machine")
    if wanted > memory.available:
        return Answer("warning", what, "end what else runs, or SGREC_SPARK_MEMORY=2g")
    return Answer("ok", what)


def _clock(settings: Settings) -> Answer:
    """No file that this home or this sgrec has, or that waits to be read, may come from the future."""
    now = datetime.now(UTC)
    latest, tomorrow = now.timestamp() + SLACK_SECONDS, (now + timedelta(days=1)).date().isoformat()
    files = [PROJECT_ROOT / "requirements" / "main.lock", *settings.home.resolve().glob("reports/*/*.json*")]
    kind, _, path = settings.input.partition(":")
    days = sorted(Path(path).glob("day=????-??-??")) if kind == "logs" else []
    files += [file for day in days[-1:] for file in day.rglob("*")]
    ahead = [str(day) for day in days if day.name > f"day={tomorrow}"]
    ahead += [str(file) for file in files if file.lstat().st_mtime > latest]
    if ahead:
        what = f"it is {now:%Y-%m-%d %H:%M} UTC, and these are from later: {few(ahead)}"
        return Answer("failed", what, "timedatectl set-ntp true, here and where the files come from")
    return Answer("ok", f"{now:%Y-%m-%d %H:%M} UTC")


MACHINE: dict[str, Callable[[Settings], Answer]] = {
    "java": _java,
    "libraries": _libraries,
    "interpreters": _interpreters,
    "judge": _judge,
    "landing": _landing,
    "disk": _disk,
    "memory": _memory,
    "clock": _clock,
}
