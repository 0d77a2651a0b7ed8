"""Faults of what a night runs in: processes, disk, settings, Java, Airflow."""

import shutil
import subprocess
import time
from contextlib import suppress

import psutil

from benchmarks.oncall_fault import CannotBeMadeError, fault
from benchmarks.oncall_home import cut
from benchmarks.oncall_world import World, end_family

MIB = 2**20


def no_setting(world: World) -> None:
    """The person's mend."""
    world.settings = {}


def right_folder(world: World) -> None:
    """The person's mend."""
    world.asked = None


def _mounted(world: World, *options: str) -> None:
    """The home on a disk of its own, a tmpfs."""
    aside = world.folder / "aside"
    world.home.rename(aside)
    world.home.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4g", "tmpfs", world.home], capture_output=True, text=True
    )
    if done.returncode:
        raise CannotBeMadeError(f"a disk of its own for the home needs the right to mount: {done.stderr.strip()}")
    shutil.copytree(aside, world.home, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(aside)
    _remount(world, *options)


def _remount(world: World, *options: str) -> None:
    subprocess.run(["mount", "-o", ",".join(["remount", *options]), world.home], check=True)


def room(world: World) -> None:
    """The person's mend."""
    _remount(world, "size=4g")


def writable(world: World) -> None:
    """The person's mend."""
    _remount(world, "rw")


@fault(runs=False)
def night_never_starts(world: World) -> None:
    """Nothing happens."""


@fault(during="train_supervised")
def killed_midway(world: World) -> None:
    time.sleep(1)
    assert world.process is not None
    end_family(world.process.pid)


@fault(during="build_states")
def job_killed(world: World) -> None:
    """The fork that does the job; the JVM beside it is another fork's."""
    time.sleep(3)
    assert world.process is not None
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(world.process.pid).children(recursive=True)
        keeper = next((process.parent() for process in family if process.name() == "java"), None)
        if keeper is None or keeper.ppid() == world.process.pid:
            return
        for fork in keeper.parent().children():
            if fork.pid != keeper.pid:
                fork.kill()


@fault(mend=room)
def disk_full(world: World) -> None:
    _mounted(world)
    used = shutil.disk_usage(world.home).used
    _remount(world, f"size={used + 2 * MIB}")


@fault(mend=writable)
def home_is_read_only(world: World) -> None:
    _mounted(world, "ro")


@fault(mend=no_setting, settings={"SGREC_SUPERVISED__EPOCHS": "ten"})
def wrong_setting(world: World) -> None:
    """It stands in the environment."""


@fault(mend=no_setting, settings={"SGREC_JUDGE__ENGIN": "server"})
def unknown_setting(world: World) -> None:
    """It stands in the environment."""


@fault(mend=no_setting, settings={"SGREC_SPARK_MEMORY": "1x"})
def wrong_spark_memory(world: World) -> None:
    """It stands in the environment."""


@fault(mend=no_setting, settings={"JAVA_HOME": "/opt/there-is-no-java"})
def java_is_gone(world: World) -> None:
    """It stands in the environment."""


@fault(mend=no_setting, settings={"SGREC_STATES__MAX_HISTORY": "1"})
def changed_states_setting(world: World) -> None:
    """It stands in the environment."""


@fault()
def airflow_database_torn(world: World) -> None:
    cut(world.home / "airflow" / "airflow.db")


@fault(mend=right_folder)
def home_of_another_source(world: World) -> None:
    world.asked = world.folder / "logs-of-another-shop"
    shutil.copytree(world.logs, world.asked)
