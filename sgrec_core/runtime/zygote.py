"""The warm process of a night: it imports the libraries once, and runs each job in a fork of itself.

Libraries alone are imported, never the project's code: each job reads that when it starts, as it would alone, so what
runs is what its code digest describes. Nothing is called, so that no thread, connection or device exists when a job is
forked; that is checked before every fork. A fork runs in a session of its own, with the arguments, environment, folder
and standard streams of the command that asked (`sgrec_core.runtime.warm`).

Nothing outlives what it is for: a job ends when its command does, and jobs, Spark's JVM and this process end when
Airflow does, which alone holds the other end of ``--alive``. Killed itself, this process takes its jobs with it.
"""

import argparse
import atexit
import ctypes
import gc
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgrec_core.runtime.warm import COLD, SOCKET, WARM

LIBRARIES = (
    # In the order in which a night needs them, so that no job waits for what it does not need.
    ("typer", "pydantic_settings", "rich.progress", "psutil", "yaml", "pandas", "pyarrow.dataset", "pyarrow.parquet")
    + ("deltalake", "pyspark.sql", "pyspark.sql.pandas.types")
    + ("great_expectations", "great_expectations.expectations")
    + ("torch", "sklearn.cluster", "sentence_transformers")
    + ("mlflow", "mlflow.models", "mlflow.tracking", "lightgbm", "scipy.optimize", "torch._dynamo")
)
GRACE_SECONDS = 10.0
"""How long a job may take to end after SIGTERM before it is killed."""
FREE: tuple[str, ...] = ("SGREC_", "_SGREC_", "AIRFLOW_", "_AIRFLOW_", "__AIRFLOW_")
FREE += ("CUDA_VISIBLE_DEVICES=", "PWD=", "OLDPWD=", "SHLVL=", "_=")
"""Beginnings of ``name=`` of the variables in which a job may differ: no library reads them when it is imported."""
NO_THREADS = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "_RJEM_MALLOC_CONF": "background_thread:false"}
"""The allocators of Arrow and delta-rs would each start a thread when they are loaded."""
PR_SET_PDEATHSIG = 1


@dataclass(eq=False)
class Running:
    """A fork, which leads the session ``pid``: a job, or the keeper of Spark's JVM, for which nobody waits."""

    pid: int
    module: str
    connection: socket.socket | None
    killed_at: float | None = None
    """When it is killed, once it has been asked to end."""


class Zygote:
    """``spark_jobs``: modules that are given the JVM, of which ``gateway`` tells; it ends with the last of them."""

    def __init__(self, listener: socket.socket, alive: int, spark_jobs: list[str], gateway: Path):
        self.spark_jobs, self.gateway = spark_jobs, gateway
        self.environment = dict(os.environ)
        self.running: list[Running] = []
        self.jvm: Running | None = None
        self.ending = False
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ, self.accept)
        self.selector.register(alive, selectors.EVENT_READ, self.end)
        self.signals, woken = socket.socketpair()
        woken.setblocking(False)
        self.selector.register(self.signals, selectors.EVENT_READ, self.signalled)
        signal.set_wakeup_fd(woken.detach())
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        self.listener, self.alive = listener, alive

    def serve(self, libraries: Iterable[str]) -> None:
        """Answer requests, and import in between, until Airflow has ended or SIGTERM arrives."""
        if self.spark_jobs:
            self.jvm = self.fork("sgrec_core.lake.gateway", [str(self.gateway)], None, lambda: None)
        os.environ.update(NO_THREADS)
        waiting = list(libraries)
        while not self.ending or self.running:
            if self.ending:
                waiting.clear()
            for key, _ in self.selector.select(0 if waiting else 1.0):
                key.data()
            for fork in self.running:
                if fork.killed_at is not None and time.monotonic() > fork.killed_at:
                    signal_group(fork.pid, signal.SIGKILL)
            if waiting:
                load(waiting.pop(0))

    def accept(self) -> None:
        """Start the job that a command asks for, or tell it to run it itself."""
        connection, _ = self.listener.accept()
        streams: list[int] = []
        try:
            connection.settimeout(5)
            head, streams, _, _ = socket.recv_fds(connection, 4, 3)
            text = b""
            while len(text) < int.from_bytes(head, "big") and (part := connection.recv(1 << 16)):
                text += part
            asked = json.loads(text)
            if self.serves(asked):
                self.start(asked, connection, streams)
            else:
                connection.sendall(COLD.encode())
                connection.close()
        except (OSError, ValueError):
            traceback.print_exc()
            connection.close()
        finally:
            for stream in streams:
                os.close(stream)

    def serves(self, asked: dict[str, Any]) -> bool:
        """Whether a fork of this process is what the job would be alone; tells why not."""
        here, there = (
            {(name, value) for name, value in variables.items() if not f"{name}=".startswith(FREE)}
            for variables in (self.environment, asked["environment"])
        )
        reasons = {
            "the night ends": self.ending,
            f"its environment is {asked['prefix']}": asked["prefix"] != os.path.realpath(sys.prefix),
            f"it differs in {', '.join(sorted({name for name, _ in here ^ there}))}": here != there,
            "a library has started a thread": not single_threaded(),
        }
        for reason in (reason for reason, holds in reasons.items() if holds):
            print(f"{asked['module']} runs without the warm process: {reason}", file=sys.stderr, flush=True)
        return not any(reasons.values())

    def start(self, asked: dict[str, Any], connection: socket.socket, streams: list[int]) -> None:
        environment = {name: value for name, value in asked["environment"].items() if name != SOCKET}
        if self.jvm and asked["module"] in self.spark_jobs:
            environment["_SGREC_SPARK_GATEWAY"] = str(self.gateway)  # `sgrec_core.lake.spark` reads it

        def prepare() -> None:
            connection.close()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            os.chdir(asked["folder"])
            sys.path[0] = asked["folder"]
            os.environ.clear()
            os.environ.update(environment)

        job = self.fork(asked["module"], asked["arguments"], connection, prepare)
        connection.sendall(WARM.encode())
        self.selector.register(connection, selectors.EVENT_READ, lambda: self.left(job))

    def fork(
        self, module: str, arguments: list[str], connection: socket.socket | None, prepare: Callable[[], None]
    ) -> Running:
        """``python -m module arguments`` in a session of its own, after ``prepare``."""
        parent = os.getpid()
        if pid := os.fork():
            self.running.append(fork := Running(pid, module, connection))
            return fork
        try:
            os.setsid()
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == parent:
                signal.set_wakeup_fd(-1)
                for number in (signal.SIGCHLD, signal.SIGTERM):
                    signal.signal(number, signal.SIG_DFL)
                # An end that a fork held open would not be seen to close.
                for held in (self.listener, self.signals, *(fork.connection for fork in self.running)):
                    if held:
                        held.close()
                os.close(self.alive)
                self.selector.close()
                prepare()
                sys.argv = [module, *arguments]
                run_main(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True))
        finally:
            os._exit(1)

    def left(self, job: Running) -> None:
        """The command that asked for a job has ended: so must the job."""
        if job in self.running:
            assert job.connection
            self.selector.unregister(job.connection)
            self.ask_to_end(job)
            if job.module in self.spark_jobs:
                self.end_jvm()

    def ask_to_end(self, fork: Running) -> None:
        if fork.killed_at is None:
            fork.killed_at = time.monotonic() + GRACE_SECONDS
            signal_group(fork.pid, signal.SIGTERM)

    def end_jvm(self) -> None:
        if self.jvm:
            self.ask_to_end(self.jvm)
            self.gateway.unlink(missing_ok=True)
            self.jvm = None

    def signalled(self) -> None:
        if signal.SIGTERM in self.signals.recv(4096):
            self.end()
        for fork in list(self.running):
            pid, status = os.waitpid(fork.pid, os.WNOHANG)
            if pid:
                self.running.remove(fork)
                self.ended(fork, status)

    def ended(self, fork: Running, status: int) -> None:
        if fork.killed_at is not None:
            signal_group(fork.pid, signal.SIGKILL)  # what it had started and left behind
        if fork is self.jvm or (fork.module in self.spark_jobs and (status or fork.module == self.spark_jobs[-1])):
            # A job that failed may have left work in the JVM; behind the last one, its memory is for others.
            self.end_jvm()
        if fork.connection:
            with suppress(KeyError):
                self.selector.unregister(fork.connection)
            with suppress(OSError):
                fork.connection.sendall(status.to_bytes(4, "big"))
            fork.connection.close()

    def end(self) -> None:
        """Take no more requests, and end everything that runs."""
        if not self.ending:
            self.ending = True
            self.selector.unregister(self.listener)
            self.selector.unregister(self.alive)
            self.end_jvm()
            for fork in self.running:
                self.ask_to_end(fork)


def load(library: str) -> None:
    try:
        importlib.import_module(library)
    except ImportError:
        traceback.print_exc()  # a job that needs it will say so too
    # What is imported is never garbage; else each job would copy the memory that its collector visits.
    gc.collect()
    gc.freeze()


def run_main(run: Callable[[], Any]) -> None:
    """``run`` as the interpreter runs a main module; what was imported is not taken down, which takes a second."""
    code: Any = 0
    try:
        run()
    except SystemExit as left:
        code = left.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code & 0xFF)


def signal_group(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


def single_threaded() -> bool:
    """Whether a fork is safe. OpenBLAS ends its threads before a fork by itself, hence the one that is tried here."""
    if len(os.listdir("/proc/self/task")) > 1:
        if pid := os.fork():
            os.waitpid(pid, 0)
        else:
            os._exit(0)
    return len(os.listdir("/proc/self/task")) == 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listener", type=int, required=True, help="descriptor of a socket that listens")
    parser.add_argument("--alive", type=int, required=True, help="descriptor of a pipe; all ends when it is closed")
    parser.add_argument("--folder", type=Path, required=True, help="of this process: its socket; removed at its end")
    parser.add_argument("--spark-jobs", nargs="*", default=[], help="modules of the Spark jobs, in their order")
    parser.add_argument("--libraries", nargs="*", default=LIBRARIES, help="modules to import")
    given = parser.parse_args()
    listener = socket.socket(fileno=given.listener)
    Zygote(listener, given.alive, given.spark_jobs, given.folder / "spark").serve(given.libraries)
    shutil.rmtree(given.folder, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    main()
