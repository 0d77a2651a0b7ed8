"""What all pages share: templates with words for values, all text escaped, and a policy under which nothing is loaded.

The one script copies a command. The policy of a page names its digest, so no other script runs and no request leaves.
"""

import base64
import hashlib
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import jinja2

from sgrec_core.wording import duration, fact, metric, number, share, words

SCRIPT = "copy.js"


@cache
def page_environment() -> jinja2.Environment:
    """The templates beside this file, with filters that put values into words; all text is escaped."""
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number, share=share, duration=duration, clock=clock, words=words, metric=metric, fact=fact
    )
    script = (folder / SCRIPT).read_text(encoding="utf-8").removesuffix("\n")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals["policy"] = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none';"
        f" script-src 'sha256-{digest}'"
    )
    return environment


def clock(moment: datetime | None) -> str:
    """A time with its day, in UTC."""
    return "–" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
