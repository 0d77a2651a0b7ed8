"""What is told of an incident, in words: without a secret, whatever its cause quotes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sgrec_core.quality.incidents import CRITICAL, LATE, Due, Incident
from sgrec_core.wording import without_secrets

LONGEST = 1500
"""Characters of a cause that are told; the page has all."""
LEAST_SECRET = 8
"""Characters of the shortest text that is taken for a secret: a shorter one hides nothing and would garble words."""
HIDDEN = "…"


@dataclass(frozen=True)
class Message:
    """A subject in one line, sentences, and what to paste."""

    subject: str
    lines: tuple[str, ...]
    command: str | None


def message(due: Due, reports: Path, secrets: Sequence[str]) -> Message:
    """What ``due`` says.

    Args:
        reports: folder of all nights' pages.
        secrets: texts that it must not hold.
    """
    made = _over(due.incident) if due.is_over else _begun(due.incident, reports)
    return Message(
        hidden(made.subject, secrets),
        tuple(hidden(line, secrets) for line in made.lines),
        made.command and hidden(made.command, secrets),
    )


def hidden(text: str, secrets: Sequence[str]) -> str:
    """``text`` without ``secrets`` and without what URLs hold of them."""
    for part in parts(secrets):
        text = text.replace(part, HIDDEN)
    return without_secrets(text)


def parts(secrets: Sequence[str]) -> list[str]:
    """``secrets``, and of URLs the path and its end, where a webhook has its key; the longest first."""
    paths = [urlsplit(secret).path.strip("/") for secret in secrets if "://" in secret]
    found = {*secrets, *paths, *(path.rpartition("/")[2] for path in paths)}
    return sorted((part for part in found if len(part) >= LEAST_SECRET), key=len, reverse=True)


def _begun(incident: Incident, reports: Path) -> Message:
    is_late = incident.kind == LATE
    verdict = "late" if is_late else "red" if incident.severity == CRITICAL else "amber"
    nights = "" if incident.nights == 1 else f"; {incident.nights} nights since {incident.first_night}"
    return Message(
        f"sgrec: night {incident.last_night} is {verdict}: {incident.kind}, {incident.owner}",
        (
            f"Night {incident.last_night} is {verdict}: {_short(incident.cause)}",
            f"owner: {incident.owner}",
            f"last good night: {incident.last_good or 'none'}{nights}",
            *([] if is_late else [f"page: {reports / incident.last_night / 'index.html'}"]),
            f"incident {incident.incident}: no more is told until it is over. Whoever takes it says so:"
            f" sgrec incidents ack {incident.incident} --reason WHY",
        ),
        incident.command,
    )


def _over(incident: Incident) -> Message:
    count = "1 night" if incident.nights == 1 else f"{incident.nights} nights"
    nights = incident.first_night if incident.nights == 1 else f"{incident.first_night} to {incident.last_night}"
    return Message(
        f"sgrec: over: {incident.kind}, {incident.owner}",
        (
            f"Incident {incident.incident} is over after {count} ({nights}): {incident.resolved_by}"
            f" is {incident.resolved_why}.",
            f"It was: {_short(incident.cause)}",
            f"owner: {incident.owner}",
        ),
        None,
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"
