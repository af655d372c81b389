"""`gemmule bench eval`: the tasks of lm-eval."""

from pathlib import Path
from typing import Any

import click

from gemmule.cli._bench_keep import KeptRows
from gemmule.cli._bench_measure import progress_line, show, subjects_of
from gemmule.cli._bench_options import bench_engine_options, files_argument, form_options
from gemmule.cli._common import verbosity_options
from gemmule.cli._output import check_output

__all__ = ["eval_command"]


def _names(_ctx: click.Context, _option: click.Parameter, value: str) -> tuple[str, ...]:
    """`arc_easy,gsm8k`."""
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    if not names:
        raise click.BadParameter("name at least one task")
    return names


@click.command("eval", short_help="Tasks of lm-eval: which share is right.")
@files_argument
@click.option(
    "--tasks",
    required=True,
    callback=_names,
    metavar="NAME,NAME",
    help="Tasks or groups of tasks; `lm_eval ls tasks` lists them.",
)
@click.option(
    "--num-fewshot",
    "n_examples",
    type=click.IntRange(0),
    metavar="N",
    help="Examples before each question.  [the task's own]",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most N questions of each task.  [all]")
@click.option(
    "--include-path",
    "folder",
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder with more tasks.",
)
@click.option("--apply-chat-template", "chat", is_flag=True, help="Ask as in a chat.")
@click.option(
    "-c",
    "--ctx",
    "n_ctx",
    type=click.IntRange(16, 1 << 20),
    default=4096,
    show_default=True,
    help="Context; the beginning of longer questions is left out.",
)
@bench_engine_options
@form_options
@verbosity_options
def eval_command(
    files: tuple[str, ...],
    n_ctx: int,
    form: str,
    output: Path | None,
    tasks: tuple[str, ...],
    n_examples: int | None,
    limit: int | None,
    folder: Path | None,
    chat: bool,
    **options: Any,
) -> None:
    """Tasks of lm-eval (the Language Model Evaluation Harness) on each file, in this process.

    Needs `pip install 'gemmule[eval]'`. Most tasks download their questions when they are first used.
    """  # fmt: skip
    from gemmule._bench.evaluation import EvaluationPlan, measure_tasks
    from gemmule._bench.quality_report import quality_markdown

    if output is not None:
        check_output(output)
    plan = EvaluationPlan(tasks, n_examples, limit, folder, chat)
    subjects = subjects_of(files, {**options, "peer": None})
    with KeptRows(output) as keep:
        rows = measure_tasks(subjects, plan, n_ctx=n_ctx, progress=progress_line(), keep=keep)
    show(rows, quality_markdown(rows), form, output)
