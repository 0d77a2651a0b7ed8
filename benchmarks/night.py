"""What a night costs beside its work: ``python -m benchmarks.night [--short]``, on a machine with nothing else to do.

Whole nights of ``sgrec nightly`` in homes of their own, each with jobs forked from a warm process and with jobs that
start alone. Work is the time inside ``run(job)`` without the start of Spark, as the stages tell it themselves; all
else of the wall time is overhead: Airflow, imports, Spark's start, gates, the command itself.
"""

import argparse
import json
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console

from benchmarks.report import Claim, write
from sgrec_core.lake import Lake, load_contract
from sgrec_core.night.airflow import prepare_airflow
from sgrec_core.runtime.stages import STAGES
from sgrec_core.settings import PROJECT_ROOT, Settings

DAY = "2026-01-05"
SIZES = {"tiny": {"SGREC_SIMULATOR__USERS": "200"}, "default": {}}
GOAL_SECONDS = 60.0
TEXT = """\
Whole nights of `sgrec nightly` in fresh homes with Airflow's database set up: the marketplace of 200 users (tiny) and
of 1,500 (default). Overhead is wall time less the time inside `run(job)`, Spark's start counted as overhead; so are
gates, imports, Airflow and the command itself. *Alone*: each job starts as `python -m jobs.<stage>`
(`SGREC_AIRFLOW__WARM=false`); its own import statements run inside `run(job)`, so its overhead is taken against the
work of the other night of its size. CPU seconds are of the command and all that it waited for. One night each; load
is the machine's average over a minute before and after: figures with a load above the number of cores are of a
machine that did other things as well.

{load}
"""


@dataclass(frozen=True)
class Part:
    """One task of a night."""

    task: str
    seconds: float
    """From its start to its end, as Airflow has it."""
    work: float
    """Inside ``run(job)``."""


@dataclass(frozen=True)
class Measured:
    name: str
    wall: float
    cpu: float
    parts: list[Part]
    load: tuple[float, float]

    @property
    def work(self) -> float:
        return sum(part.work for part in self.parts)


def measure(name: str, home: Path, variables: dict[str, str]) -> Measured:
    """One night in a fresh home.

    Raises:
        RuntimeError: it stopped.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SGREC_")}
    environment = {**inherited, **variables, "SGREC_HOME": str(home)}
    prepare_airflow(Settings(home=home), Console(stderr=True))
    before, started, load = cpu_of_children(), time.monotonic(), os.getloadavg()[0]
    command = [sys.executable, "-c", "from sgrec_core.cli import main; main()", "nightly", "--day", DAY]
    done = subprocess.run(command, env=environment, cwd=PROJECT_ROOT)
    wall = time.monotonic() - started
    if done.returncode:
        raise RuntimeError(f"the night in {home} stopped with exit code {done.returncode}")
    return Measured(name, wall, cpu_of_children() - before, parts_of(home), (load, os.getloadavg()[0]))


def cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def parts_of(home: Path) -> list[Part]:
    lines = (home / "reports" / DAY / "progress.jsonl").read_text().splitlines()
    work = {event["stage"]: event["work_seconds"] for event in map(json.loads, lines) if "work_seconds" in event}
    with closing(sqlite3.connect(home / "airflow" / "airflow.db")) as connection:
        tasks = connection.execute(
            "select task_id, start_date, end_date from task_instance where end_date is not null order by start_date"
        ).fetchall()
    return [
        Part(task, (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds(), work.get(task, 0.0))
        for task, start, end in tasks
    ]


def tables_that_differ(one: Path, other: Path) -> list[str]:
    """Tables of the stages whose rows are not the same to the last digit; the ledger's say when and how long."""
    differ = []
    for table in (table for stage in STAGES for table in stage.publishes if table != "judge_ledger"):
        order = [(name, "ascending") for name in load_contract(table).key]
        first, second = (Lake(home / "lake").read(table).sort_by(order) for home in (one, other))
        if not first.equals(second):
            differ.append(table)
    return differ


def stages_in_words(night: Measured) -> str:
    """Stage by stage, as a table of Markdown."""
    lines = [f"{night.name}:", "", "| task | seconds | inside run(job) | overhead |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {part.task} | {part.seconds:.1f} | {part.work:.1f} | {part.seconds - part.work:.1f} |"
        for part in night.parts
    ]
    between = night.wall - sum(part.seconds for part in night.parts)
    lines.append(f"| command, Airflow's start and between tasks | {between:.1f} | 0.0 | {between:.1f} |")
    lines.append(f"| night | {night.wall:.1f} | {night.work:.1f} | {night.wall - night.work:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="the tiny marketplace alone")
    short = parser.parse_args().short
    claims, nights = [], []
    for size, variables in SIZES.items():
        if short and size != "tiny":
            continue
        with tempfile.TemporaryDirectory() as folder:
            homes = {way: Path(folder) / way for way in ("warm", "alone")}
            warm = measure(f"{size} night", homes["warm"], variables)
            alone = measure(f"{size} night, jobs alone", homes["alone"], {**variables, "SGREC_AIRFLOW__WARM": "false"})
            differ = tables_that_differ(*homes.values())
        if differ:
            print(f"{size}: other rows in {', '.join(differ)}", file=sys.stderr)
        nights += [warm, alone]
        overhead = warm.wall - warm.work
        goal = f"under {GOAL_SECONDS:.0f} s"
        claims += [
            Claim(name=f"{size} night: overhead", value=overhead, interval=None, unit="s", goal=goal,
                  met=overhead < GOAL_SECONDS),
            Claim(name=f"{size} night: overhead, jobs alone", value=alone.wall - warm.work, interval=None, unit="s",
                  goal="", met=None),
            Claim(name=f"{size} night: wall", value=warm.wall, interval=None, unit="s", goal="", met=None),
            Claim(name=f"{size} night: wall, jobs alone", value=alone.wall, interval=None, unit="s", goal="", met=None),
            Claim(name=f"{size} night: CPU", value=warm.cpu, interval=None, unit="s", goal="", met=None),
            Claim(name=f"{size} night: CPU, jobs alone", value=alone.cpu, interval=None, unit="s", goal="", met=None),
            Claim(name=f"{size} night: tables with other rows than jobs alone made", value=len(differ), interval=None,
                  unit="tables", goal="0", met=not differ),
        ]  # fmt: skip
    load = "Load: " + ", ".join(f"{night.name} {night.load[0]:.1f} to {night.load[1]:.1f}" for night in nights) + "."
    text = "\n\n".join([TEXT.format(load=load).strip(), *(stages_in_words(night) for night in nights)])
    page = write(
        "night-short" if short else "night", claims, seeds=[7], text=text,
        details={"nights": [asdict(night) for night in nights]},
    )  # fmt: skip
    print(page.read_text())


if __name__ == "__main__":
    main()
