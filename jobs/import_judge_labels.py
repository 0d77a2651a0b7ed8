"""Read the label files of the judge: every row ends in ``judge_labels``, or rejected with its reason.

Files lie in ``judge_training.labels``; their form is in `sgrec_core.judge.training.labels`. A simulated home needs
none: what the simulator knows of the day's impressions is written as a label file and read like any other.
"""

from collections import Counter
from pathlib import Path

import pyarrow as pa

from sgrec_core.errors import InputError
from sgrec_core.judge.calls.requests import day_texts
from sgrec_core.judge.rubric import Rubric, load_rubric
from sgrec_core.judge.training.labels import label_files, read_labels, simulated_labels
from sgrec_core.judge.versions.adapters import resolve_adapter
from sgrec_core.lake import load_contract
from sgrec_core.logs.landing import file_digests, write_jsonl
from sgrec_core.logs.rows import Limits
from sgrec_core.runtime.job import Job, stage_command


def run(job: Job) -> None:
    resolve_adapter(job)
    settings = job.settings
    rubric = load_rubric(True, settings.judge.rubric)
    folder = settings.judge_training.labels or _simulated(job, rubric)
    if not folder.is_dir():
        raise InputError(f"SGREC_JUDGE_TRAINING__LABELS={folder}: no such folder")
    limits = Limits(line_bytes=settings.ingest.max_line_bytes, raw_text=settings.ingest.max_raw_text)
    fingerprint = job.inputs_fingerprint(
        {
            "files": file_digests({path.relative_to(folder).as_posix(): path for path in label_files(folder)}),
            "rubric": rubric.fingerprint,
            "limits": vars(limits),
            "validation_share": settings.states.validation_share,
        }
    )
    partition = {"day": job.day}
    if job.skip_if_published(dict.fromkeys(job.stage.publishes, partition), fingerprint):
        return
    accepted, rejected = read_labels(folder, rubric, limits, settings.states.validation_share)
    reasons = Counter(row.reason for row in rejected)
    job.fact("rows_in", len(accepted) + len(rejected))
    job.fact("labelled_samples", len(accepted))
    job.fact("rejected_by_reason", dict(sorted(reasons.items())))
    for name in ("split", "source"):
        job.fact(f"samples_by_{name}", dict(sorted(Counter(row[name] for row in accepted).items())))
    job.lake.publish(
        "judge_labels_rejected",
        _table("judge_labels_rejected", [row._asdict() for row in rejected]),
        partition=partition,
        fingerprint=fingerprint,
    )
    share, limit = len(rejected) / (len(accepted) + len(rejected)), settings.ingest.max_rejected_share
    if share > limit:
        (reason, count), first = reasons.most_common(1)[0], rejected[0]
        raise InputError(
            f"{folder}: {share:.1%} of the rows were rejected, at most {limit:.1%} may be"
            " (SGREC_INGEST__MAX_REJECTED_SHARE);"
            f" mostly {reason} ({count:,} rows), first {first.file} line {first.line}: {first.detail}"
        )
    job.lake.publish("judge_labels", _table("judge_labels", accepted), partition=partition, fingerprint=fingerprint)


def _simulated(job: Job, rubric: Rubric) -> Path:
    """A folder with what the simulator knows.

    Raises:
        InputError: the home is not simulated.
    """
    if job.settings.source != "simulator":
        raise InputError(
            f"no labels to train the judge on: set SGREC_JUDGE_TRAINING__LABELS to a folder of label files"
            f" ({job.settings.source} brings none)"
        )
    job.note("labels: the levels nearest to the simulator's true aspects")
    home = job.settings.home.resolve()
    texts = day_texts(job.lake, job.day, job.settings)
    lines = simulated_labels(
        job.lake, texts, home / "simulator", job.day, rubric, job.settings.judge_training.simulated_labels
    )
    folder = home / "landing" / "judge_labels" / f"day={job.day}"
    write_jsonl(folder / "simulated.jsonl", lines)
    return folder


def _table(name: str, rows: list[dict[str, object]]) -> pa.Table:
    schema = load_contract(name).arrow_schema
    return pa.Table.from_pylist(rows, schema=pa.schema([field for field in schema if field.name != "day"]))


main = stage_command("import_judge_labels", run)

if __name__ == "__main__":
    main()
