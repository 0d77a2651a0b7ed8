"""What every benchmark writes: ``results/<name>.json`` with a list of claims, and ``results/<name>.md`` to read."""

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sgrec_core.evaluation.significance import Interval

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One figure and the goal it is held against."""

    name: str
    value: float
    interval: tuple[float, float] | None
    """95% interval, or the spread over runs for timings; the report's text says which."""
    unit: str
    goal: str
    met: bool | None
    """None for a figure without a goal."""

    @classmethod
    def percent(cls, name: str, share: Interval, *, goal: str = "", met: bool | None = None) -> "Claim":
        """A share of one, with its interval, in percent."""
        interval = (100 * share.lower, 100 * share.upper)
        return cls(name=name, value=100 * share.value, interval=interval, unit="%", goal=goal, met=met)


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


@cache
def revision() -> str:
    """The git revision of the code that runs, at the first call, with ``+changes`` where files differ from it."""
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        name = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = [*git, "status", "--porcelain", "--", "..", ":!results"]
        changed = subprocess.run(status, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("+changes" if changed else "")


def may_keep() -> bool:
    """Whether results may be kept between runs: the revision says what code they are of."""
    return revision() != "unknown" and "+changes" not in revision()


def write(
    name: str,
    claims: list[Claim],
    *,
    seeds: list[int],
    text: str,
    details: dict[str, Any],
    folder: Path | None = None,
) -> Path:
    """Write ``<name>.json`` and ``<name>.md`` into ``folder``, `RESULTS` by default; the path of the latter.

    ``text`` is Markdown that says how the figures were taken and what they mean; ``details`` goes into the JSON alone.
    """
    command = "python -m " + " ".join([f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    header = {"command": command, "revision": revision(), "machine": machine(), "seeds": seeds}
    content = {**header, "claims": [asdict(claim) for claim in claims], "details": details}
    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    rows = ["| claim | value | interval | goal | met |", "| --- | --- | --- | --- | --- |"]
    for claim in claims:
        interval = "" if claim.interval is None else f"{claim.interval[0]:.4g} to {claim.interval[1]:.4g}"
        met = {True: "yes", False: "no", None: ""}[claim.met]
        name_cell = claim.name.replace("|", r"\|")
        rows.append(f"| {name_cell} | {claim.value:.4g} {claim.unit} | {interval} | {claim.goal} | {met} |")
    on = header["machine"]
    commit, *changes = header["revision"].partition("+")
    where = f"{on['accelerator'] or on['processor']}, {on['cores']} cores, torch {on['torch']}"
    taken = f"`{command}` at {commit[:12]}{''.join(changes)}, {where}."
    page = folder / f"{name}.md"
    page.write_text("\n".join([f"# {name}", "", taken, "", *rows, "", text.strip(), ""]))
    return page
