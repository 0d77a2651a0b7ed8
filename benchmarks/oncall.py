"""What a person on call sees of incidents, and of nights without one: ``make bench-oncall``.

    python -m benchmarks.oncall [--short] [--minutes 18] [--part shown|held_out|all] [--only FAULT ...]

A small shop has five clean nights, whose home is kept. Each fault strikes a copy of it before the sixth night or in
its midst; `sgrec nightly` runs that night as a user would. What is seen of it is what `sgrec status --json` and the
day's summary say. Where the fault can be mended, a person's part of the mend is done, and the command of the page is
pasted into a fresh shell that has the person's settings, but neither home nor input. All that is held against labels
that were written before any fault was run (`oncall_labels.yaml`): rules are made for the faults that are shown, and
measured on those that are held out. Clean nights of other seeds, each after five, count what alarms for nothing.

Every night is a piece that is kept by the code of sgrec and of the benchmark: a run that was stopped goes on.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import oncall_home, oncall_operation, oncall_raw  # noqa: F401 -- they put their faults on the list
from benchmarks.oncall_fault import FAULTS, CannotBeMadeError, Fault
from benchmarks.oncall_judge import JudgeServer
from benchmarks.oncall_report import (
    HELD_OUT,
    NOT_TRIED,
    SHOWN,
    Found,
    Label,
    claims_of_clean,
    claims_of_faults,
    held_against,
    read_labels,
    table,
)
from benchmarks.oncall_world import (
    DAY,
    PAST,
    Clock,
    Seen,
    World,
    clean_night,
    code_key,
    remove_world,
    replace_folder,
)
from benchmarks.report import write
from sgrec_core.hashing import digest

SEED = 301
CLEAN_SEEDS = {"tiny": range(401, 500), "default": range(501, 600)}
"""Not those that floors or bands were chosen on."""
NIGHTS_A_SEED = {"tiny": 10, "default": 5}
"""Clean nights that are counted, after the five of its past."""
SHORT_PAST = 1
SHORT = ("wrong_setting", "error_page_instead_of_events", "judge_refuses_a_third")
OUT_OF_TIME = 75


class OutOfTimeError(Exception):
    """The time of this call is over; what was done is kept."""


@dataclass(frozen=True)
class Kept:
    """Pieces of work, each done once and kept in a folder."""

    folder: Path
    until: float
    """When by `time.monotonic` no further piece is begun."""

    def known(self, name: str, key: str) -> dict[str, Any] | None:
        path = self._path(name, key)
        return json.loads(path.read_text()) if path.exists() else None

    def piece(self, name: str, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``make`` gives, or gave when it was last called under ``key``."""
        known = self.known(name, key)
        if known is not None:
            return known
        if time.monotonic() > self.until:
            raise OutOfTimeError(name)
        print(f"{name} ...", flush=True)
        clock = Clock()
        found = {**make(), **clock.spent()}
        path = self._path(name, key)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(found, indent=1))
        part.rename(path)
        seen = found.get("seen") or {}
        print(
            f"{name}: {seen.get('verdict', found.get('cannot'))}, then {found.get('mended')};"
            f" {found['wall']:.0f} s, {found['cpu']:.0f} s of CPU",
            flush=True,
        )
        return found

    def _path(self, name: str, key: str) -> Path:
        return self.folder / f"{name.replace(' ', '-')}-{key}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one night before, three faults, no clean nights")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no piece after so many")
    parser.add_argument("--part", choices=(SHOWN, HELD_OUT, "all"), default=SHOWN, help="which half of the faults")
    parser.add_argument("--only", nargs="+", default=[], metavar="FAULT", help="of that part these alone; no results")
    parser.add_argument("--unmended", action="store_true", help="no mends: half of the time")
    parser.add_argument("--clean", type=int, default=50, help="clean nights of the tiny size")
    parser.add_argument("--clean-default", type=int, default=10, help="the same of the default size")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "sgrec" / "benchmarks" / "oncall")
    parser.add_argument("--output", type=Path, help="folder of the results; benchmarks/results by default")
    options = parser.parse_args()
    labels = read_labels()
    names = [name for name, label in labels.items() if options.part in (label.part, "all")]
    if options.short:
        names = list(SHORT)
    if options.only:
        unknown = set(options.only) - set(names)
        if unknown:
            parser.error(f"not among the faults of part {options.part}: {', '.join(sorted(unknown))}")
        names = options.only
    options.folder.mkdir(parents=True, exist_ok=True)
    kept = Kept(options.folder.resolve(), time.monotonic() + 60 * options.minutes)
    results, clean = {}, {}
    try:
        mends = {name: NOT_TRIED if options.unmended else labels[name].mend for name in names}
        results = faults(kept, mends, nights=SHORT_PAST if options.short else PAST)
        if not options.short and not options.only:
            wanted = {"tiny": options.clean, "default": options.clean_default}
            clean = {size: clean_nights(kept, size, count) for size, count in wanted.items() if count}
    except OutOfTimeError as error:
        print(f"out of time before {error}; run again to go on", flush=True)
        sys.exit(OUT_OF_TIME)
    report(options, labels, results, clean)


# Nights


def past(kept: Kept, nights: int) -> tuple[World, str]:
    """A world whose past of clean nights lies beside it, and the key of that."""
    world = World(folder=kept.folder / "struck", judge=JudgeServer(), seed=SEED)
    key = digest(code_key(), "past", SEED, nights)
    world.past = kept.folder / f"past-{key}"
    if not world.past.exists():
        for old in kept.folder.glob("past-*"):
            remove_world(old)
        chain(kept, world, range(PAST - nights, PAST), "past")
        world.land(DAY)
        part = kept.folder / "past.part"
        replace_folder(world.folder, part)
        part.rename(world.past)
    return world, key


def chain(kept: Kept, world: World, numbers: range, name: str) -> list[dict[str, Any]]:
    """Clean nights one after another in the world's folder, which says how far they have come."""
    code, done = code_key(), world.folder / "nights.json"
    keys = [digest(code, name, world.size, world.seed, numbers.start, number) for number in numbers]
    there = json.loads(done.read_text()) if done.exists() else []
    if not there or there != keys[: len(there)]:
        remove_world(world.folder)
        world.folder.mkdir(parents=True)
        there = []
        done.write_text("[]")
    found = []
    for number, key in zip(numbers, keys, strict=True):
        title = f"{name} {world.size} {world.seed} night {number}"
        if key in there:
            found.append(kept.known(title, key) or {})
            continue
        kept._path(title, key).unlink(missing_ok=True)
        found.append(kept.piece(title, key, lambda number=number: clean_night(world, number)))
        there.append(key)
        done.write_text(json.dumps(there))
    return found


def faults(kept: Kept, mends: dict[str, str], *, nights: int) -> dict[str, dict[str, Any]]:
    """Of each fault what was seen; ``mends``: by name, as in the labels."""
    world, key = past(kept, nights)
    found = {}
    try:
        for name, mend in mends.items():
            fault = FAULTS[name]
            found[name] = kept.piece(
                name, digest(key, fault.key, mend), lambda fault=fault, mend=mend: struck(world, fault, mend)
            )
    finally:
        remove_world(world.folder)
    return found


def struck(world: World, fault: Fault, mend: str) -> dict[str, Any]:
    """The sixth night with a fault, and what comes of doing what the page says."""
    world.restore()
    world.settings = dict(fault.settings)
    try:
        if fault.during is None:
            fault.inject(world)
    except CannotBeMadeError as error:
        return {"cannot": str(error)}
    if fault.runs:
        seen = world.nightly(during=(fault.during, fault.inject) if fault.during else None)
    else:
        seen = world.seen(None, "", "--max-age-hours", "36")
    return {"seen": asdict(seen), **mended(world, fault, mend, seen)}


def mended(world: World, fault: Fault, mend: str, seen: Seen) -> dict[str, Any]:
    """The verdict once a person, and then the command of the page, have done their part; None where there is none."""
    if mend == NOT_TRIED:
        return {"mended": NOT_TRIED}
    if mend == "none" or seen.verdict == "green" or (mend != "again" and not seen.command):
        return {"mended": None}
    if fault.mend is not None:
        fault.mend(world)
    world.settings = {}
    if mend == "again":
        after = world.nightly()
        return {"mended": after.verdict, "after": asdict(after)}
    assert seen.command is not None
    code, said = world.paste(seen.command)
    if "accept-night" in seen.command and "nightly" not in seen.command:
        after = world.nightly()
    else:
        after = world.seen(code, said)
    return {"mended": after.verdict, "after": asdict(after), "pasted": {"exit_code": code, "said": said}}


def clean_nights(kept: Kept, size: str, count: int) -> list[dict[str, Any]]:
    """``count`` clean nights, each with five or more before it."""
    found: list[dict[str, Any]] = []
    for seed in CLEAN_SEEDS[size]:
        wanted = min(NIGHTS_A_SEED[size], count - len(found))
        if wanted <= 0:
            break
        world = World(folder=kept.folder / f"clean-{size}-{seed}", judge=JudgeServer(), seed=seed, size=size)
        try:
            found += chain(kept, world, range(PAST + wanted), "clean")[PAST:]
        finally:
            world.judge.away()
    return found


def report(
    options: argparse.Namespace,
    labels: dict[str, Label],
    results: dict[str, dict[str, Any]],
    clean: dict[str, list[dict[str, Any]]],
) -> None:
    lines = table(labels, results)
    claims = []
    for part in (SHOWN, HELD_OUT):
        found: list[Found] = [
            held_against(labels[name], Seen(**result["seen"]), result["mended"])
            for name, result in results.items()
            if labels[name].part == part and "seen" in result
        ]
        claims += claims_of_faults(part, found) if found else []
    for size, nights in clean.items():
        claims += claims_of_clean(size, [night["seen"]["verdict"] for night in nights])
        wrong = [night for night in nights if night["seen"]["verdict"] != "green"]
        lines += ["", f"Clean {size} nights that were not green: {len(wrong)}.", ""]
        lines += [f"- {night['day']}: {night['seen']['verdict']}, {night['seen']['cause']}" for night in wrong]
    if options.only:
        print("\n".join(lines))
        return
    text = "A small shop" + (__doc__ or "").split("A small shop", 1)[1].rstrip() + "\n\n" + "\n".join(lines)
    seeds = [SEED, *(seed for size in clean for seed in CLEAN_SEEDS[size][: len(clean[size])])]
    name = "oncall-short" if options.short else "oncall"
    page = write(
        name, claims, seeds=seeds, text=text, details={"faults": results, "clean": clean}, folder=options.output
    )
    print(page.read_text())


if __name__ == "__main__":
    main()
