"""Commands about the judge."""

import subprocess
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Annotated

import typer

from sgrec_core.cli.app import JUDGE_INTERPRETER, Judge, LabelledDay, app, complain, console
from sgrec_core.cli.homes import existing_home, valid_day, with_judge_interpreter
from sgrec_core.cli.nights import interruptible
from sgrec_core.settings import PROJECT_ROOT, Settings


@app.command("judge")
def judge_day(
    day: Annotated[str, typer.Option(help="Day of the logs, YYYY-MM-DD (UTC).", show_default=False)],
    judge: Judge = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Only say what it would cost: calls, tokens, GPU hours.")
    ] = False,
) -> None:
    """Judge what a day's candidates still need, or say first what that would cost."""
    from sgrec_core.night.airflow import only_night

    settings = existing_home(judge)
    module = "estimate_judge" if estimate else "score_aspects"
    command = [settings.interpreters.judge, "-m", f"jobs.{module}", "--day", valid_day(day)]
    with nullcontext() if estimate else only_night(settings, day):
        raise typer.Exit(subprocess.run(command, cwd=PROJECT_ROOT, env=settings.environment()).returncode)


@app.command("train-judge")
def train_judge(day: LabelledDay) -> None:
    """Train an adapter of the judge's model on labels, and activate it if it is better. Airflow does it weekly."""
    from sgrec_core.night.airflow import JUDGE_TRAINING_DAG_ID

    weigh_judge(existing_home("vllm"), day, "judge training", JUDGE_TRAINING_DAG_ID)


@app.command("compare-judge")
def compare_judge(day: LabelledDay, judge: Judge = None) -> None:
    """Compare the judge of the settings with the one that nights use, on labels; nights may use it if it is better."""
    from sgrec_core.night.airflow import JUDGE_COMPARISON_DAG_ID

    settings = existing_home(judge)
    if (PROJECT_ROOT / JUDGE_INTERPRETER).exists():
        # The other of the two may be of any engine; this environment has them all.
        settings = with_judge_interpreter(settings)
    weigh_judge(settings, day, "judge comparison", JUDGE_COMPARISON_DAG_ID)


@app.command("accept-judge")
def accept_judge(
    judge: Judge = None,
    reason: Annotated[str, typer.Option(help="Kept with it, for those who ask later.")] = "accepted by hand",
) -> None:
    """Let nights use the judge of the settings without a comparison: without labels, or where better is no aim."""
    from sgrec_core.judge.versions.accepted import accept
    from sgrec_core.judge.versions.adapters import newest, with_adapter

    settings = existing_home(judge)
    if settings.judge.adapter == "active":
        settings = with_adapter(settings, newest(settings))
    accepted = accept(settings, datetime.now(UTC).date().isoformat(), "hand", reason)
    console.print(f"nights may use judge {accepted}", soft_wrap=True, markup=False)


def weigh_judge(settings: Settings, day: str, what: str, dag_id: str) -> None:
    """Run a DAG that ends with the judge's gate, and say what came out."""
    from sgrec_core.lake import Lake
    from sgrec_core.night.airflow import run_night
    from sgrec_core.runtime.runs import last_done
    from sgrec_core.runtime.stages import JUDGE_TRAINING_FOLDER

    day = valid_day(day)
    console.print(
        f"{what} {day} · {settings.judge.engine} {settings.judge.model} · home {settings.home}", soft_wrap=True
    )
    with interruptible(f"the {what} of {day}"):
        ended = run_night(settings, day, console, dag_id=dag_id, folder=JUDGE_TRAINING_FOLDER)
    if ended.exit_code:
        complain(f"the {what} of {day} stopped at {ended.reason}")
        raise typer.Exit(1)
    run = last_done(Lake(settings.lake_root), day, "evaluate_judge")
    assert run is not None, "the DAG ended well, and this is its last stage"
    facts = run.facts
    console.print(f"{'activated' if facts['activated'] else 'not activated'}: {facts['reason']}", soft_wrap=True)
    console.print(f"report: {settings.home / facts['report']}", soft_wrap=True)
