"""The pages of many nights as a person meets them: a folder of files behind a plain web server."""

import functools
import http.server
import json
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest

from benchmarks.pages import AT_GATE, CRASHED, GOOD, OUT_OF_BAND, invent_nights
from sgrec_core.files import write_json
from sgrec_core.lake import Lake
from sgrec_core.quality.night_metrics import declared
from sgrec_core.quality.report import write_report
from sgrec_core.runtime.runs import Run, record
from sgrec_core.settings import Settings
from sgrec_core.wording import number

ATTACK = '</td></script><script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">'
ENDS = [GOOD, OUT_OF_BAND, AT_GATE, CRASHED]
CONTRAST = """
() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = (color) => {
    const linear = (c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = color.map((one) => linear(one / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const color = parse(getComputedStyle(element).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const bad = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode()); ) {
    const element = node.parentElement;
    if (!node.textContent.trim() || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const ink = parse(element.namespaceURI.endsWith("svg") ? style.fill : style.color);
    const [a, b] = [light(ink.slice(0, 3)), light(behind(element).slice(0, 3))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) bad.add(element.outerHTML.slice(0, 100));
  }
  return [...bad];
}
"""


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Day of each kind of night; the home stands under ``home``."""
    settings = Settings(home=tmp_path_factory.mktemp("pages") / "home", input="simulator")
    days = invent_nights(settings, ENDS, groups=8, attack=ATTACK)
    for day in days:
        write_report(settings, day)
    return {"home": str(settings.home), **dict(zip(["first", *ENDS[1:]], days, strict=True))}


def read(page: Path) -> str:
    """With spaces as a browser reads them."""
    return " ".join(page.read_text(encoding="utf-8").split())


def page_of(nights: dict[str, str], kind: str) -> str:
    return read(Path(nights["home"]) / "reports" / nights[kind] / "index.html")


def summary_of(nights: dict[str, str], kind: str) -> dict[str, Any]:
    return json.loads((Path(nights["home"]) / "reports" / nights[kind] / "summary.json").read_text())


def test_the_first_screen_says_since_when_how_bad_and_what_it_touches(nights: dict[str, str]) -> None:
    page = page_of(nights, OUT_OF_BAND)
    alarm = summary_of(nights, OUT_OF_BAND)["alarms"][0]
    assert f'last green night <a href="../{nights["first"]}/index.html">' in page
    assert f"<li>{alarm['metric']} {alarm['dimension']} <b>" in page
    assert "are made of it (build_states, " in page
    page = page_of(nights, AT_GATE)
    assert "user_states.user_id: not null <b>140 of 2,048 rows (6.84%)</b>, valid is a value" in page
    assert "9 stages did not run: tokenize_items, fit_business_reward, " in page
    assert f'<a href="../{nights["first"]}/index.html">' in page
    page = page_of(nights, CRASHED)
    assert "nothing was measured before the stop" in page
    assert "4 stages did not run: train_aggregator, " in page
    assert "How bad" not in page_of(nights, "first")


def test_the_calendar_links_nights_and_names_open_problems_by_owner(nights: dict[str, str]) -> None:
    reports = Path(nights["home"]) / "reports"
    text = read(reports / "index.html")
    for kind, verdict in (("first", "green"), (OUT_OF_BAND, "amber"), (AT_GATE, "red"), (CRASHED, "red")):
        assert f'class="day {verdict}" href="{nights[kind]}/index.html" aria-label="{nights[kind]}: {verdict}' in text
    problems = text[text.index("Open problems") : text.index('id="nights"')]
    for kind in (AT_GATE, CRASHED):
        cause = summary_of(nights, kind)["cause"]
        row = problems[: problems.index(f">{nights[kind]}</a>")].rpartition("<tr>")[2]
        assert f'<th scope="row">{cause["owner"]}</th>' in row
    assert f"url={nights[CRASHED]}/index.html" in (reports / "latest.html").read_text()


def chart_of(page: str, name: str) -> tuple[str, str]:
    """The chart of a metric of the 30 days, and the text beside it."""
    item = page[page.index('<ul class="sparks">') :].partition(f'<span class="small">{name}</span>')[2]
    chart, _, text = item.partition("</svg>")
    return chart, text.partition("</li>")[0]


def test_every_metric_has_a_chart_of_its_band_and_the_figures_beside_it(nights: dict[str, str]) -> None:
    page, day = page_of(nights, OUT_OF_BAND), nights[OUT_OF_BAND]
    shown = page.partition('<ul class="sparks">')[2].partition("</section>")[0]
    assert shown.count("<svg") == len(declared().figures)
    assert page.index("<svg") < page.index('id="alarms"'), "under the tiles too"
    chart, text = chart_of(page, "events click")
    assert "events click, 2 of 30 days: " in chart
    assert f"out of its band on {day}" in chart
    alarm = next(one for one in summary_of(nights, OUT_OF_BAND)["alarms"] if one["dimension"] == "click")
    assert f"band {number(alarm['low'])} to {number(alarm['high'])}" in text
    band = [float(point.split(",")[1]) for point in re.findall('points="([^"]*)"', chart)[0].split()]
    [out] = re.findall('cy="([^"]*)" r="3" class="out"', chart)
    assert float(out) > max(band), "below it, for y grows downwards"
    chart, text = chart_of(page, "users")
    assert "never out of its band" in chart
    assert 'class="out"' not in chart
    chart, text = chart_of(page_of(nights, CRASHED), "supervised_ndcg")
    assert "not measured this night" in text
    assert "3 of 30 days" in chart, "without what an earlier run of the night had measured"


def test_the_page_says_when_stages_ran_and_what_the_judge_took(nights: dict[str, str]) -> None:
    page = page_of(nights, "first")
    assert "02:00:00 UTC to 02:02:12: 2 min 12 s, of which 2 min 12 s in stages and gates." in page
    row = page.partition("<span>train_supervised</span>")[2].partition("</tr>")[0]
    left, width = (float(one) for one in re.findall(r"left:([\d.]+)%;width:([\d.]+)%", row)[0])
    assert (round(left), round(width)) == (25, 23), "it began after 33.4 s and took 31 of 132.4"
    engine = page.partition('<th scope="row">vllm tiny score 1 GPU</th>')[2].partition("</tr>")[0]
    assert re.findall(">([^<]+)</td>", engine) == ["128", "51,200", "11,520", "1,536", "30 min 00 s", "0.50"]
    assert "train_aggregator" in page_of(nights, CRASHED)
    row = page_of(nights, CRASHED).partition("<span>train_aggregator</span>")[2].partition("</tr>")[0]
    assert "left:" not in row, "it has not run"


def test_the_panel_of_the_judge_has_histograms_examples_and_flagged_texts(nights: dict[str, str]) -> None:
    page, lake = page_of(nights, OUT_OF_BAND), Lake(Path(nights["home"]) / "lake")
    judge = page.partition('id="judge"')[2].partition("</section>")[0]
    rows = lake.read("rewards", where={"day": nights[OUT_OF_BAND]}).to_pylist()
    mean = sum(row["scores"][1] for row in rows) / len(rows)
    charts = dict(re.findall('aria-label="(quality|trust): (.*?)"', judge))
    assert charts["quality"].startswith(f"mean score {mean:.2f}, the night before 0.")
    chart = judge.partition("quality: mean")[2].partition("</svg>")[0]
    heights = [float(one) for one in re.findall('height="([^"]+)"', chart)]
    shares = [sum(-1 + 0.2 * place <= row["scores"][1] < -0.8 + 0.2 * place for row in rows) for place in range(10)]
    assert heights.index(max(heights)) == shares.index(max(shares))
    assert "6 judged examples" in judge
    found = [float(one) for one in re.findall('data-label="Semantic reward"[^>]*>([^<]+)<', judge)]
    holistic = sorted(row["holistic"] for row in rows)
    assert found == sorted(found)
    assert [found[0], found[-1]] == pytest.approx([holistic[0], holistic[-1]], rel=1e-3)
    assert judge.count("Fits what the user looked at. &lt;/td&gt;") == 6
    flagged = judge.partition("Suspicious texts as they came")[2]
    assert '<th scope="row">item i3</th>' in flagged
    assert flagged.count('<tr><th scope="row">') == 2
    assert "Wool Blue 3 &lt;/td&gt;" in flagged, "its title"
    assert "{&#34;age&#34;: 30}" in flagged
    assert "Line: " not in page_of(nights, "first"), "there is no night before"
    assert "Scores of each aspect" not in page_of(nights, CRASHED)


def test_the_page_says_what_changed_since_the_night_before(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, input="simulator")
    before, day = invent_nights(settings, [GOOD, GOOD], groups=2)
    first = read(write_report(settings, before)[1])
    text = read(write_report(settings, day)[1])
    assert f"What changed since {before}</h2>" in text
    assert "Nothing but the rows" in text
    assert "What changed since" not in first
    for name, told in ((before, {"SGREC_A": "1", "SGREC_C": None}), (day, {"SGREC_B": ATTACK, "SGREC_C": "now told"})):
        write_json(settings.reports(name) / "settings.json", told)
    lake = Lake(settings.lake_root)
    run = Run(day=before, stage="score_aspects", input="simulator", started=datetime(2026, 1, 7, tzinfo=UTC))
    record(lake, [run.ended("finished", facts={"judge_version": "j0", "judge_asked": 5}, code_digest="c0")])
    text = read(write_report(settings, day)[1])
    changed = text.partition('id="changed"')[2].partition("</section>")[0]
    assert "<code>SGREC_A</code> 1 → <b>default</b>" in changed
    assert "<code>SGREC_B</code> default → <b>&lt;/td&gt;" in changed
    assert "<code>SGREC_C</code> a secret → <b>now told</b>" in changed
    assert "<code>score_aspects: judge_version</code> j0 → <b>j1</b>" in changed
    assert "<dt>Code of</dt><dd>score_aspects</dd>" in changed
    assert "judge_asked" not in changed
    row = text.partition('<th scope="row">items</th>')[2].partition("</tr>")[0]
    assert "+0.0%" in row
    lake.publish(
        "items", lake.read("items", where={"day": day}).slice(0, 100), partition={"day": day}, fingerprint="1" * 32
    )
    text = read(write_report(settings, day)[1])
    assert "-75.0%" in text.partition('<th scope="row">items</th>')[2].partition("</tr>")[0]


def test_a_page_is_smaller_than_a_megabyte(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, input="simulator")
    day = invent_nights(settings, [GOOD] * 30, groups=2, attack=ATTACK)[-1]
    _, page = write_report(settings, day)
    text = page.read_text(encoding="utf-8")
    assert "items, 30 of 30 days" in text
    assert len(text.encode()) < 250_000


def test_nothing_is_open_after_a_green_night(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, input="simulator")
    for day in invent_nights(settings, [CRASHED, GOOD], groups=2):
        _, page = write_report(settings, day)
    (page.parent.parent / "2026-02-30").mkdir()
    (page.parent.parent / "2026-02-01").mkdir()
    (page.parent.parent / "2026-02-01" / "summary.json").write_text("torn")
    (page.parent.parent / "2025-12-31").mkdir()
    write_json(page.parent.parent / "2025-12-31" / "summary.json", {"status": "stopped", "stopped_at": "ingest_events"})
    write_report(settings, "2026-01-06")
    text = (page.parent.parent / "index.html").read_text()
    assert "None: the newest night is green." in text
    assert "2026-02" not in text
    assert 'aria-label="2025-12-31: red, stopped at ingest_events"' in text, "of a summary without a verdict"


@pytest.fixture
def address(nights: dict[str, str]) -> Iterator[str]:
    """Of the reports behind a plain web server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(Path(nights["home"]) / "reports"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_every_page_reads_well_and_asks_nobody(
    browser: Any, nights: dict[str, str], address: str, scheme: str, width: int
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for path in ("index.html", *(f"{nights[kind]}/index.html" for kind in ("first", *ENDS[1:]))):
        page.goto(address + path)
        page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
        assert page.title().startswith("sgrec"), path
        assert page.evaluate("document.documentElement.scrollWidth") == width, path
        assert page.evaluate(CONTRAST) == [], path
    assert messages == []
    assert [url for url in asked if not url.startswith((address, "data:"))] == []
    context.close()


@pytest.mark.browser
def test_every_link_resolves(browser: Any, address: str) -> None:
    page = browser.new_page()
    seen, waiting = set(), [address + "index.html", address + "latest.html"]
    while waiting:
        url = waiting.pop()
        if url in seen:
            continue
        seen.add(url)
        answer = page.request.get(url)
        assert answer.ok, url
        if url.endswith("latest.html"):
            page.goto(url)
            page.wait_for_url("**/index.html")
        elif url.endswith(".html") and "data_docs" not in url:
            page.goto(url)
            links = page.evaluate("[...document.querySelectorAll('a')].map((one) => one.getAttribute('href'))")
            waiting += [urljoin(page.url, link) for link in links if not link.startswith("#")]
    assert len(seen) >= 2 + len(ENDS)
    page.close()


@pytest.mark.browser
def test_the_command_is_on_the_first_screen_and_is_copied(browser: Any, nights: dict[str, str], address: str) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 844})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(f"{address}{nights[AT_GATE]}/index.html")
    box = page.locator("#command").bounding_box()
    assert box["y"] + box["height"] < 844
    page.get_by_role("button", name="Copy").press("Enter")
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == summary_of(nights, AT_GATE)["cause"]["command"]
    context.close()


@pytest.mark.browser
def test_without_scripts_the_command_is_selected_by_a_click(browser: Any, nights: dict[str, str], address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{address}{nights[CRASHED]}/index.html")
    assert page.get_by_role("button").count() == 0
    assert page.get_by_text("A click selects all of it.").is_visible()
    assert page.locator("#command").is_visible()
    context.close()


@pytest.mark.browser
@pytest.mark.parametrize("kind", ["first", AT_GATE])
def test_a_page_prints_on_less_than_four_sheets(browser: Any, nights: dict[str, str], address: str, kind: str) -> None:
    page = browser.new_page()
    page.goto(f"{address}{nights[kind]}/index.html")
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4"))) < 4
    page.close()
