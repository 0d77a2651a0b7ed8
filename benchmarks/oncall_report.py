"""Labels of the faults, how what was seen is held against them, and what is written of it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.gate_months import wilson
from benchmarks.oncall_world import Seen
from benchmarks.report import Claim

LABELS = Path(__file__).with_name("oncall_labels.yaml")
WARNED = "warned"
SHOWN, HELD_OUT = "shown", "held_out"
NOT_TRIED = "not tried"
MOST_CLEAN_AMBER, CLEAN_NIGHTS = 1, 60


@dataclass(frozen=True, kw_only=True)
class Label:
    """What would be right for a person on call; the file says what each field means."""

    name: str
    area: str
    what: str
    verdict: tuple[str, ...]
    may_promote: bool
    cause: tuple[str, ...]
    wrong_cause: tuple[str, ...] = ()
    owner: tuple[str, ...]
    mend: str
    by: str = ""
    ends: tuple[str, ...]
    held_out: bool

    @property
    def part(self) -> str:
        return HELD_OUT if self.held_out else SHOWN


def read_labels(path: Path = LABELS) -> dict[str, Label]:
    """By name, in the order of the file."""
    entries = yaml.safe_load(path.read_text())["faults"]
    lists = ("verdict", "cause", "wrong_cause", "owner", "ends")
    return {
        entry["name"]: Label(**{key: tuple(value) if key in lists else value for key, value in entry.items()})
        for entry in entries
    }


@dataclass(frozen=True, kw_only=True)
class Found:
    """A fault, as it was seen, held against its label. None: it does not apply."""

    noticed: bool
    """Amber, red, or a warning that names the cause, where the label wants something of that."""
    severity: bool
    cause: bool
    owner: bool | None
    promoted: bool
    """Though it must not."""
    mended: bool | None


def held_against(label: Label, seen: Seen, mended: str | None) -> Found:
    """``mended``: the verdict after what the page said was done; None where there was nothing to do it with."""
    warned = seen.verdict == "green" and any(_names(label, warning) for warning in seen.warnings)
    verdict = WARNED if warned else seen.verdict
    alarmed = seen.verdict != "green"
    text = seen.cause or " ".join(one for one in seen.warnings if one.startswith("status:"))
    return Found(
        noticed=alarmed or warned,
        severity=verdict in label.verdict,
        cause=_names(label, text) if alarmed else warned,
        owner=seen.owner in label.owner if alarmed else None,
        promoted=seen.promoted and not label.may_promote,
        mended=None if label.mend == "none" or mended == NOT_TRIED else mended in label.ends,
    )


def _names(label: Label, text: str) -> bool:
    def has(pattern: str) -> bool:
        return re.search(pattern, text, re.IGNORECASE) is not None

    return all(map(has, label.cause)) and not any(map(has, label.wrong_cause))


def claims_of_faults(part: str, found: Sequence[Found]) -> list[Claim]:
    """Shares with Wilson's interval of one half of the faults."""
    goals: list[tuple[str, Iterable[bool | None], float]] = [
        ("noticed", (one.noticed for one in found), 0.95),
        ("of the right severity", (one.severity for one in found), 0.9),
        ("the true cause named", (one.cause for one in found), 0.9),
        ("its owner named", (one.owner for one in found), 0.9),
        ("mended by what the page says", (one.mended for one in found), 0.9),
    ]
    claims = []
    for name, values, goal in goals:
        told = [value for value in values if value is not None]
        share = wilson(sum(told), len(told))
        title = f"{part.replace('_', ' ')} faults: {name} ({sum(told)} of {len(told)})"
        claims.append(Claim.percent(title, share, goal=f">= {goal:.0%}", met=share.value >= goal))
    wrongly = sum(one.promoted for one in found)
    share = wilson(wrongly, len(found))
    title = f"{part.replace('_', ' ')} faults: promoted though they must not ({wrongly} of {len(found)})"
    return [*claims, Claim.percent(title, share, goal="0", met=wrongly == 0)]


def claims_of_clean(size: str, verdicts: Sequence[str]) -> list[Claim]:
    """Clean nights that alarm somebody."""
    claims = []
    allowed = {"amber": MOST_CLEAN_AMBER * len(verdicts) / CLEAN_NIGHTS, "red": 0.0}
    for verdict, most in allowed.items():
        count = verdicts.count(verdict)
        title = f"clean {size} nights that are {verdict} ({count} of {len(verdicts)})"
        goal = f"{MOST_CLEAN_AMBER} of {CLEAN_NIGHTS}" if most else "0"
        met = count <= (max(most, MOST_CLEAN_AMBER) if most else 0)
        claims.append(Claim.percent(title, wilson(count, len(verdicts)), goal=goal, met=met))
    return claims


HEAD = ("fault", "right", "seen", "cause", "owner", "promoted", "mended", "what was said")


def table(labels: Mapping[str, Label], results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A row a fault, as Markdown."""
    lines = ["| " + " | ".join(HEAD) + " |", "| --- " * len(HEAD) + "|"]
    for name, result in results.items():
        label = labels[name]
        if "cannot" in result:
            lines.append(f"| {name} | {'/'.join(label.verdict)} | not made: {_cell(result['cannot'])} |" + " |" * 5)
            continue
        seen, found = Seen(**result["seen"]), held_against(label, Seen(**result["seen"]), result["mended"])
        verdict = WARNED if seen.verdict == "green" and found.cause else seen.verdict
        mark = "" if found.severity else " **wrong**"
        owner = "" if found.owner is None else _yes(found.owner, str(seen.owner))
        promoted = ("**wrongly**" if found.promoted else "yes") if seen.promoted else "no"
        mended = "" if found.mended is None else _yes(found.mended, str(result["mended"] or "no command"))
        said = _cell(seen.cause or "; ".join(f"{one[:70]}…" if len(one) > 71 else one for one in seen.warnings))
        cells = (name, "/".join(label.verdict), verdict + mark, _yes(found.cause), owner, promoted, mended, said)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _yes(right: bool, what: str = "") -> str:
    return "yes" if right else f"**no** ({what})" if what else "**no**"


def _cell(text: str) -> str:
    flat = " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")
    return flat if len(flat) <= 240 else flat[:239] + "…"
