"""``docs/tables.md``, generated from the contracts: ``python -m sgrec_core.quality.table_docs``.

A test fails when the file is not what the contracts say.
"""

import textwrap
from pathlib import Path

from sgrec_core.lake.contracts import Column, Contract, all_contracts
from sgrec_core.quality.alarms import TABLE as NIGHT_METRICS
from sgrec_core.runtime.stages import ALL_STAGES, STAGE_RUNS
from sgrec_core.settings import PROJECT_ROOT

TABLE_DOCS = PROJECT_ROOT / "docs" / "tables.md"


def table_docs() -> str:
    """The whole page as Markdown: tables in the order in which the night publishes them."""
    order = [table for stage in ALL_STAGES for table in stage.publishes]
    contracts = sorted(all_contracts(), key=lambda contract: (order + [contract.table]).index(contract.table))
    parts = [
        "# Tables",
        "Made from the contracts in `schemas/` by `python -m sgrec_core.quality.table_docs`; do not edit by hand.",
        _wrapped(
            "A day is a UTC day of event time. Every rule below is a check of the gate behind the stage: when one of a "
            "critical table fails, the night stops."
        ),
        "\n".join(
            ["| table | published by | what |", "| --- | --- | --- |", *(_line(contract) for contract in contracts)]
        ),
    ]
    return "\n\n".join([*parts, *(_section(contract) for contract in contracts)]) + "\n"


def _line(contract: Contract) -> str:
    stages = ", ".join(stage.name for stage in ALL_STAGES if contract.table in stage.publishes)
    stages = {STAGE_RUNS: "every run", NIGHT_METRICS: "gates"}.get(contract.table, stages)
    return f"| [{contract.table}](#{contract.table}) | {stages} | {_cell(contract.description)} |"


def _section(contract: Contract) -> str:
    readers = ", ".join(f"`{stage.name}`" for stage in ALL_STAGES if contract.table in stage.reads)
    readers = {STAGE_RUNS: "every stage", NIGHT_METRICS: "gates, `evaluate_generator`"}.get(contract.table, readers)
    unique = "; ".join(", ".join(f"`{name}`" for name in columns) for columns in (contract.key, *contract.unique))
    facts = [
        f"- Owner: {contract.owner}; a broken rule is {contract.severity}.",
        f"- Partitioned by {', '.join(f'`{name}`' for name in contract.partition_by)};"
        f" unique within a partition: {unique}.",
        f"- Read by {readers or 'people alone'}.",
        f"- {'May be empty' if contract.may_be_empty else 'Never empty'}.",
        f"- When it is broken: {contract.runbook.strip()}",
    ]
    rows = ["| column | valid | what |", "| --- | --- | --- |", *(_row(column) for column in contract.columns)]
    listed = "\n".join(_wrapped(fact, indent="  ") for fact in facts)
    return "\n\n".join([f"## {contract.table}", _wrapped(contract.description), listed, "\n".join(rows)])


def _wrapped(text: str, indent: str = "") -> str:
    """At most 120 columns, lines after the first indented."""
    words = " ".join(text.split())
    return textwrap.fill(words, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _row(column: Column) -> str:
    return f"| `{column.name}` | {_cell(column.valid())} | {_cell(column.description)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main(path: Path = TABLE_DOCS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(table_docs(), encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
