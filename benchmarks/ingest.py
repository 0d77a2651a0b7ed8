"""Raw events through ingest and states, by size and format, beside a bare Spark job that does the same reading.

    python -m benchmarks.ingest [--short] [--large] [--minutes 18] [--folder PATH] [--output FOLDER]

Each size is a day of JSON Lines or Parquet in files of 250,000 events (8 at least), with a catalogue of 20,000 items. A
fresh process runs ``ingest_events`` and then ``build_states``; another one a bare Spark job that reads the same files
with a schema, casts, and writes the same rows as Parquet, without a word about what is wrong with any row. The same
million stands in 1,440 files as well. Pieces are kept under ``--folder`` by their code; a run that was stopped goes on.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.report import Claim, write
from sgrec_core.hashing import digest

DAY = "2026-01-05"
FILE_ROWS, ITEMS = 250_000, 20_000
SIZES, SHORT_SIZES, LARGE = (1_000_000, 10_000_000), (20_000, 100_000), 100_000_000
GOALS = {"jsonl": 0.25, "parquet": 0.6}
THREADS = 2
OUT_OF_TIME = 75
MEMORY = ("driver_mib", "jvm_mib", "workers_mib", "all_mib")
COLUMNS = (
    "event_id string, event_time timestamp, user_id string, item_id string, event_type string, request_id string,"
    " placement string, position int, price double, bid double"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="small sizes, in a minute or two")
    parser.add_argument("--large", action="store_true", help="a hundred million as Parquet as well, in an hour")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no piece after so many")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "sgrec" / "benchmarks" / "ingest")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--piece", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.piece:
        print(json.dumps(PIECES[options.piece[0]](Path(options.piece[1]), options.piece[2])))
        return
    until = time.monotonic() + 60 * options.minutes
    sizes = SHORT_SIZES if options.short else SIZES
    found: dict[str, dict[str, float]] = {}
    for rows in sizes:
        for kind in ("jsonl", "parquet"):
            files = max(8, rows // FILE_ROWS)
            for piece in ("bare", "ingest"):
                name = f"{piece} {kind} {rows}"
                found[name] = kept(options.folder, name, piece, kind, rows, files, until)
    many = 1440 if not options.short else 200
    name = f"ingest jsonl {sizes[0]} in {many} files"
    found[name] = kept(options.folder, name, "ingest", "jsonl", sizes[0], many, until)
    if options.large:
        name = f"ingest parquet {LARGE}"
        found[name] = kept(options.folder, name, "ingest", "parquet", LARGE, LARGE // FILE_ROWS, until)
    report(found, sizes, many, options)


def kept(folder: Path, name: str, piece: str, kind: str, rows: int, files: int, until: float) -> dict[str, float]:
    """What a piece gave when it was last run with this code and these rows."""
    root = Path(__file__).parents[1]
    read = [*root.glob("sgrec_core/lake/*.py"), *root.glob("sgrec_core/logs/*.py"), root / "jobs" / "ingest_events.py"]
    code = [path.read_text() for path in (Path(__file__), *sorted(read))]
    path = folder / f"{digest(*code, name)}.json"
    if path.exists():
        return json.loads(path.read_text())
    if time.monotonic() > until:
        print(f"out of time before {name}; run again to go on", flush=True)
        sys.exit(OUT_OF_TIME)
    logs = folder / f"logs-{kind}-{rows}-{files}"
    if not (logs / "_DONE").exists():
        shutil.rmtree(logs, ignore_errors=True)
        make(logs, kind, rows, files)
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    command = [sys.executable, "-m", "benchmarks.ingest", "--piece", piece, str(logs), kind]
    environment = {**os.environ, "SGREC_BENCHMARK_WORK": str(work)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    result = json.loads(done.stdout.strip().splitlines()[-1])
    path.write_text(json.dumps(result))
    shutil.rmtree(work, ignore_errors=True)
    print(name, {key: round(value, 1) for key, value in result.items()}, flush=True)
    return result


def make(folder: Path, kind: str, rows: int, files: int) -> None:
    """A day of events: impressions with a click on a tenth of them, in the order of time, users in proportion."""
    day = folder / f"day={DAY}"
    (day / "events").mkdir(parents=True)
    (day / "catalogue").mkdir()
    with (day / "catalogue" / "items.jsonl").open("w") as stream:
        for item in range(ITEMS):
            stream.write(
                json.dumps({"item_id": f"i{item}", "title": f"item {item}", "category": f"c{item % 40}"}) + "\n"
            )
    draws = np.random.default_rng(0)
    moments = pa.timestamp("us", "UTC")
    first = int(datetime(2026, 1, 5, tzinfo=UTC).timestamp()) * 1_000_000
    bounds = np.linspace(0, rows, files + 1).astype(int)
    for number in range(files):
        at = np.arange(bounds[number], bounds[number + 1])
        request = at // 10
        table = pa.table(
            {
                "event_id": named("e", at),
                "event_time": pa.array(first + (at * (86_000_000_000 / rows)).astype(np.int64), moments),
                "user_id": named("u", request * 7919 % max(rows // 50, 10)),
                "item_id": named("i", draws.integers(0, ITEMS, len(at))),
                "event_type": pa.array(np.where(at % 10 == 9, "click", "impression")),
                "request_id": named("r", request),
                "placement": pa.repeat("home", len(at)),
                "position": pa.array(at % 10),
                "price": pa.array(draws.uniform(1, 90, len(at)).round(2)),
                "bid": pa.array(draws.uniform(0, 1, len(at)).round(3)),
            }
        )
        path = day / "events" / f"part-{number:05d}.{kind}"
        if kind == "parquet":
            pq.write_table(table, path)
        else:
            path.write_text("\n".join(json_lines(table).to_pylist()) + "\n")
    (folder / "_DONE").touch()


def named(letter: str, numbers: np.ndarray) -> pa.Array:
    return pc.binary_join_element_wise(letter, pc.cast(pa.array(numbers), pa.string()), "")


def json_lines(table: pa.Table) -> pa.ChunkedArray:
    """[N] each row as a JSON object; its texts need no escapes."""
    parts: list[object] = []
    for name in table.column_names:
        values, mark = table[name], ""
        if pa.types.is_timestamp(values.type):
            values, mark = pc.strftime(values, "%Y-%m-%dT%H:%M:%S+00:00"), '"'
        elif pa.types.is_string(values.type):
            mark = '"'
        parts += [f'{", " if parts else "{"}"{name}": {mark}', pc.cast(values, pa.string()), mark]
    return pc.binary_join_element_wise(*parts, "}", "")


# What a fresh process does


def ingest(logs: Path, kind: str) -> dict[str, float]:
    from rich.console import Console

    from jobs import build_states, ingest_events
    from sgrec_core.lake import Lake
    from sgrec_core.runtime.job import Job
    from sgrec_core.settings import Settings

    settings = Settings(
        home=Path(os.environ["SGREC_BENCHMARK_WORK"]) / "home", input=f"logs:{logs}", threads=THREADS, spark_memory="4g"
    )
    result, memory = {}, Memory()
    for name, stage in (("ingest", ingest_events), ("states", build_states)):
        started = time.monotonic()
        assert Job(f"{name}_events" if name == "ingest" else "build_states", DAY, settings).execute(
            stage.run, Console(quiet=True)
        ) == 0  # fmt: skip
        result[f"{name}_seconds"] = time.monotonic() - started
    return {**result, "events": float(Lake(settings.lake_root).count("events")), **memory.peaks}


def bare(logs: Path, kind: str) -> dict[str, float]:
    """Read with a schema, cast, write: what no pipeline can be faster than with this engine."""
    from sgrec_core.lake.spark import spark_session
    from sgrec_core.settings import Settings

    work, memory = Path(os.environ["SGREC_BENCHMARK_WORK"]), Memory()
    started = time.monotonic()
    spark = spark_session(Settings(home=work / "home", threads=THREADS, spark_memory="4g"), "bare")
    source = str(logs / f"day={DAY}" / "events")
    reader = spark.read.schema(COLUMNS)
    frame = reader.json(source) if kind == "jsonl" else spark.read.parquet(source)
    names = [column.split()[0] for column in COLUMNS.split(", ")]
    frame.select(*names).write.parquet(str(work / "bare"))
    seconds = time.monotonic() - started
    count = spark.read.parquet(str(work / "bare")).count()
    spark.stop()
    return {"ingest_seconds": seconds, "events": float(count), **memory.peaks}


class Memory(threading.Thread):
    """Largest resident sets, in MiB, seen twice a second: of this process, of Spark's JVM, of all of them."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peaks = dict.fromkeys(MEMORY, 0.0)
        self.start()

    def run(self) -> None:
        this = psutil.Process()
        while True:
            now = dict.fromkeys(MEMORY, 0.0) | {"driver_mib": mebibytes(this)}
            for child in this.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    now["jvm_mib" if child.name() == "java" else "workers_mib"] += mebibytes(child)
            now["all_mib"] = sum(now.values())
            self.peaks = {name: max(peak, now[name]) for name, peak in self.peaks.items()}
            time.sleep(0.5)


def mebibytes(process: psutil.Process) -> float:
    """What is this process's alone: workers are forked, and share most of what they have."""
    return process.memory_full_info().uss / 2**20


PIECES = {"ingest": ingest, "bare": bare}


def report(found: dict[str, dict[str, float]], sizes: tuple[int, ...], many: int, options: Any) -> None:
    def seconds(name: str) -> float:
        return found[name]["ingest_seconds"]

    claims = []
    heads = "piece, events, ingest (s), events a second, states (s), driver (MiB), JVM (MiB), workers (MiB), all (MiB)"
    lines = [f"| {heads.replace(', ', ' | ')} |", "| --- " * (heads.count(",") + 1) + "|"]
    for name, result in found.items():
        lines.append(
            f"| {name} | {result['events']:,.0f} | {result['ingest_seconds']:.1f} |"
            f" {result['events'] / result['ingest_seconds']:,.0f} | {result.get('states_seconds', 0):.1f} |"
            f" {' | '.join(f'{result[name]:,.0f}' for name in MEMORY)} |"
        )
    small, large = sizes[0], sizes[-1]
    for kind, goal in GOALS.items():
        speed = seconds(f"bare {kind} {large}") / seconds(f"ingest {kind} {large}")
        claims.append(Claim(name=f"speed of ingest over the bare Spark job, {kind}, {large:,} events", value=speed,
                            interval=None, unit="times", goal=f">= {goal}", met=speed >= goal))  # fmt: skip
    spans = [(kind, small, large) for kind in GOALS]
    spans += [("parquet", large, LARGE)] if f"ingest parquet {LARGE}" in found else []
    for kind, *span in spans:
        both = [found[f"ingest {kind} {rows}"] for rows in span]
        times = [one["ingest_seconds"] + one["states_seconds"] for one in both]
        exponent = float(np.log(times[1] / times[0]) / np.log(span[1] / span[0]))
        claims.append(Claim(name=f"time exponent of ingest and states, {kind}, {span[0]:,} to {span[1]:,}",
                            value=exponent, interval=None, unit="", goal="<= 1.05", met=exponent <= 1.05))  # fmt: skip
    ratio = seconds(f"ingest jsonl {small} in {many} files") / seconds(f"ingest jsonl {small}")
    claims.append(Claim(name=f"{small:,} events in {many:,} files over the same in {max(8, small // FILE_ROWS)}",
                        value=ratio, interval=None, unit="times", goal="<= 1.5", met=ratio <= 1.5))  # fmt: skip
    text = "Each size" + (__doc__ or "").split("Each size", 1)[1].rstrip() + "\n\n" + "\n".join(lines)
    name = "ingest-short" if options.short else "ingest"
    page = write(name, claims, seeds=[0], text=text, details={"pieces": found}, folder=options.output)
    print(page.read_text())


if __name__ == "__main__":
    main()
