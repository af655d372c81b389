"""`gemmule bench`: measure speed, memory and quality, compare two measurements, draw pictures of them."""

import click

from gemmule.cli._bench_eval import eval_command
from gemmule.cli._bench_measure import (
    all_command,
    memory_command,
    quality_command,
    roofline_command,
    speed_command,
)
from gemmule.cli._bench_read import compare_command, plot_command, report_command

__all__ = ["bench_command"]


@click.group("bench", invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def bench_command(ctx: click.Context) -> None:
    """Measure model files on this machine: speed, memory, quality.

    Results are rows of JSON with llama-bench's field names. A busy machine is refused, runs of several files
    take turns, and every figure has its spread.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for _command in (
    speed_command, memory_command, quality_command, eval_command, all_command, roofline_command,
    compare_command, plot_command, report_command,
):  # fmt: skip
    bench_command.add_command(_command)
