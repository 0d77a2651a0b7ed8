"""Great Expectations' pages as files that ask nobody: without scripts, and with our own style in place of a CDN's.

Their pages load Bootstrap, jQuery, Vega and logos from seven hosts, and their index is drawn by a script. What carries
information is HTML, and stays as it is.
"""

import html
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from typing import Any

from sgrec_core.quality.environment import page_environment

DROPPED = ("script", "style", "link", "img", "title", "footer", "button", "iframe", "meta", "svg", "nav")
"""Elements that load something, do something, or are said anew."""
DROPPED_CLASSES = {"modal", "alert-dismissible", "col-lg-2"}
"""A tour, an advertisement, and the column of filters, which are scripts."""
VOID = ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr")
TEMPLATE = "plain_page.html.jinja"


def plain_page(text: str, *, title: str, home: str) -> str:
    """A page of theirs as one that needs nothing from outside.

    Args:
        title: of the page, as text.
        home: link to the index of the pages.
    """
    parser = _Plain()
    parser.feed(text)
    parser.close()
    return page_environment().get_template(TEMPLATE).render(title=title, home=home, body="".join(parser.kept))


class _Plain(HTMLParser):
    """Collects the body; text and entities come out as they came in."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.kept: list[str] = []
        self._is_in_body = False
        self._dropped: str | None = None
        """The element that is being dropped with all that it holds."""
        self._depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._dropped:
            self._depth += tag == self._dropped
        elif tag == "body":
            self._is_in_body = True
        elif self._is_in_body:
            classes = set((dict(attrs).get("class") or "").split())
            if tag not in DROPPED and not classes & DROPPED_CLASSES:
                self.kept.append(f"<{tag}{''.join(_attribute(*one) for one in attrs if _is_plain(tag, *one))}>")
            elif tag not in VOID:
                self._dropped, self._depth = tag, 1

    def handle_endtag(self, tag: str) -> None:
        if self._dropped:
            self._depth -= tag == self._dropped
            if not self._depth:
                self._dropped = None
        elif tag == "body":
            self._is_in_body = False
        elif self._is_in_body and tag not in DROPPED and tag not in VOID:
            self.kept.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self._keep(data)

    def handle_entityref(self, name: str) -> None:
        self._keep(f"&{name};")

    def handle_charref(self, name: str) -> None:
        self._keep(f"&#{name};")

    def _keep(self, text: str) -> None:
        if self._is_in_body and not self._dropped:
            self.kept.append(text)


def _is_plain(tag: str, name: str, value: str | None) -> bool:
    """Whether an attribute neither runs nor leaves the pages. No style: theirs hides what a script would show."""
    if name in ("class", "id", "colspan", "rowspan"):
        return True
    return tag == "a" and name == "href" and ":" not in (value or "").partition("#")[0]


def _attribute(name: str, value: str | None) -> str:
    return f' {name}="{html.escape(value or "")}"'


def index_page(validations: Sequence[Mapping[str, Any]], suites: Sequence[Mapping[str, Any]]) -> str:
    """The index: ``validations`` {day, table, success, path} of the nights, and the ``suites`` {table, path}."""
    days: dict[str, list[Mapping[str, Any]]] = {}
    for one in validations:
        days.setdefault(one["day"], []).append(one)
    return page_environment().get_template("data_docs.html.jinja").render(days=days, suites=suites)
