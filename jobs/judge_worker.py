"""One of ``judge.workers`` judges that work side by side before the stage score_aspects, with an engine of its own."""

from typing import Annotated

import typer

from sgrec_core.errors import SettingsError
from sgrec_core.judge.calls.plan import work
from sgrec_core.runtime.job import Job, errors_in_words, load_settings, valid_day


def judge_worker(
    day: Annotated[str, typer.Option(help="Day of the logs, YYYY-MM-DD (UTC).", show_default=False)],
    worker: Annotated[int, typer.Option(min=0, help="Number of this worker, from 0.", show_default=False)],
) -> None:
    """Score this worker's shards of the day's calls; the stage score_aspects does what is left.

    Exit codes: 0 done, 1 crashed, 2 an input or a setting is wrong.
    """
    with errors_in_words():
        settings = load_settings()
        if worker >= settings.judge.workers:
            raise SettingsError(f"--worker {worker}: valid is 0 to {settings.judge.workers - 1} (judge.workers)")
        work(Job("score_aspects", valid_day(day), settings), worker)


def main() -> None:
    typer.run(judge_worker)


if __name__ == "__main__":
    main()
