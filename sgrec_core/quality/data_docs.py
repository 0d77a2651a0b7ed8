"""Great Expectations' own pages (Data Docs) over the last nights' validations.

The gates leave raw results beside each day's report; here they are copied into the one context on disk, from which
everything older is removed first: Data Docs slow down as validations pile up. The pages that it makes of them become
``reports/data_docs``, plain files that need no network (`plain_pages`).
"""

import fcntl
import html
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sgrec_core.files import read_json, write_text
from sgrec_core.lake.contracts import all_contracts
from sgrec_core.quality.plain_pages import index_page, plain_page
from sgrec_core.quality.validation import raw_result_path
from sgrec_core.settings import Settings


def build_data_docs(settings: Settings) -> Path:
    """Rebuild the Data Docs from the newest ``quality.data_docs_nights`` days and return their index page."""
    home = settings.home.resolve()
    root = home / "great_expectations"
    root.mkdir(parents=True, exist_ok=True)
    with _only_one(root.with_suffix(".lock")):
        return _publish(*_build(root, _newest_days(settings)), home / "reports" / "data_docs")


def _publish(site: Path, outcomes: Mapping[tuple[str, str], bool], target: Path) -> Path:
    """Plain pages of Great Expectations' ``site`` in the place of those that stand in ``target``; their index page."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    validations: list[dict[str, Any]] = []
    suites: list[dict[str, Any]] = []
    for path in sorted(site.glob("*/**/*.html")):
        place = path.relative_to(site)
        kind, table = place.parts[:2]
        if kind == "validations":
            day, moment = place.parts[2:4]
            ran = datetime.strptime(moment, "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC)
            one = {"day": day, "table": table, "ran": ran, "success": outcomes[(day, table)], "path": place.as_posix()}
            validations.append(one)
            title = f"{table} of {day}"
        else:
            suites.append({"table": path.stem, "path": place.as_posix()})
            title = f"What {path.stem} promises"
        home = "../" * (len(place.parts) - 1) + "index.html"
        write_text(part / place, plain_page(path.read_text(encoding="utf-8"), title=title, home=home))
    validations.sort(key=lambda one: one["day"], reverse=True)
    write_text(part / "index.html", index_page(validations, suites))
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    shutil.rmtree(site)
    return target / "index.html"


def _build(root: Path, days: list[Path]) -> tuple[Path, dict[tuple[str, str], bool]]:
    """The folder of Great Expectations' own pages, and by day and table whether the validation passed."""
    import great_expectations as gx
    from great_expectations.core import ExpectationSuiteValidationResult, RunIdentifier
    from great_expectations.data_context.types.resource_identifiers import (
        ExpectationSuiteIdentifier,
        ValidationResultIdentifier,
    )

    from sgrec_core.quality.suites import suite_from_contract

    for folder in ("expectations", "uncommitted"):  # all of it is derived
        shutil.rmtree(root / folder, ignore_errors=True)
    context = gx.get_context(context_root_dir=str(root), mode="file")
    context.enable_analytics(False)
    for contract in all_contracts():
        context.suites.add_or_update(suite_from_contract(contract))
    outcomes: dict[tuple[str, str], bool] = {}
    for reports in days:
        for contract in all_contracts():
            path = raw_result_path(reports, contract.table)
            raw = read_json(path, otherwise="the Data Docs leave this validation out")
            if not raw:
                continue
            outcomes[(reports.name, contract.table)] = raw["success"]
            ran = datetime.fromisoformat(raw["meta"]["run_id"]["run_time"])
            raw["meta"]["run_id"]["run_name"] = reports.name
            for outcome in raw["results"]:
                outcome["result"] = _escaped(outcome["result"])
                outcome["exception_info"] = _escaped(outcome["exception_info"])
            result = ExpectationSuiteValidationResult(**raw)
            key = ValidationResultIdentifier(
                expectation_suite_identifier=ExpectationSuiteIdentifier(contract.table),
                run_id=RunIdentifier(run_name=reports.name, run_time=ran),
                batch_identifier=contract.table,
            )
            context.validation_results_store.set(key, result)
    pages = context.build_data_docs()
    return Path(next(iter(pages.values())).removeprefix("file://")).parent, outcomes


def _escaped(value: Any) -> Any:
    """Text in ``value`` as HTML text: Great Expectations puts the values of bad rows into its pages as they are."""
    if isinstance(value, str):
        return html.escape(value)
    if isinstance(value, list):
        return [_escaped(element) for element in value]
    if isinstance(value, dict):
        return {name: _escaped(element) for name, element in value.items()}
    return value


def _newest_days(settings: Settings) -> list[Path]:
    """Report folders of the newest days that have validations, newest first."""
    folders = (settings.home.resolve() / "reports").glob("*/quality/great_expectations")
    days = sorted((folder.parent.parent for folder in folders), reverse=True)
    return days[: settings.quality.data_docs_nights]


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """One builder at a time: nights of a backfill may report together."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file gives the lock back
