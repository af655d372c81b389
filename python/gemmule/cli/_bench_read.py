"""The commands of `gemmule bench` that read rows: compare, plot and report."""

import shutil
import sys
from pathlib import Path

import click

from gemmule.cli._bench_options import folder_option
from gemmule.cli._common import CheckFailedError, verbosity_options
from gemmule.cli._terminal import shows_styles

__all__ = ["compare_command", "plot_command", "report_command"]

_ROWS = click.Path(exists=True, path_type=Path)


@click.command("compare", short_help="What changed between two measurements.")
@click.argument("old", type=_ROWS)
@click.argument("new", type=_ROWS)
@click.option(
    "--fail-if",
    "conditions",
    multiple=True,
    metavar="'tg>5%'",
    help="Exit 7 if a figure is worse by more than this, beyond its error (repeatable): pp, tg, "
    "first, load, memory, kl, ppl, top, right, value.",
)
@click.option("--json", "as_json", is_flag=True, help="Rows of JSON.")
@verbosity_options
def compare_command(old: Path, new: Path, conditions: tuple[str, ...], as_json: bool) -> None:
    """What changed from the rows of OLD to those of NEW: files of JSON lines, or folders of reports. A change
    within its error is called indistinguishable.
    """
    from gemmule._bench.compare import Condition, compare_rows, comparison_markdown
    from gemmule._bench.formats import jsonl_text, read_rows

    wanted = [Condition.parse(text) for text in conditions]
    changes = compare_rows(read_rows(old), read_rows(new))
    if as_json:
        click.echo(jsonl_text([change.to_dict() for change in changes]), nl=False)
    else:
        click.echo(comparison_markdown(changes), nl=False)
    broken = [f"{change.name} {change.shown}" for change in changes if any(c.holds(change) for c in wanted)]
    if broken:
        raise CheckFailedError(f"worse than allowed: {'; '.join(broken)}")


@click.command("plot", short_help="Pictures of rows, in files or in the terminal.")
@click.argument("rows", nargs=-1, required=True, type=_ROWS)
@folder_option("The folder for the pictures.  [beside the rows]", required=False)
@click.option("--png", is_flag=True, help="PNG besides SVG.")
@click.option("--term", is_flag=True, help="Draw in the terminal instead.")
@verbosity_options
def plot_command(rows: tuple[Path, ...], folder: Path | None, png: bool, term: bool) -> None:
    """Pictures of rows: size against quality, tokens per second, memory, depth, roofline, drafting."""
    from gemmule._bench.formats import check_comparable, read_rows
    from gemmule._errors import FormatError

    found = [row for path in rows for row in read_rows(path)]
    check_comparable(found)
    if term:
        from gemmule._bench.terminal import terminal_plots

        width = max(60, shutil.get_terminal_size().columns)
        text = terminal_plots(found, width=width, colours=shows_styles(sys.stdout))
    else:
        from gemmule._bench.plots import write_plots

        if folder is None:
            folder = rows[0] if rows[0].is_dir() else rows[0].parent
        text = "".join(f"{path}\n" for path in write_plots(found, folder, png=png))
    if not text:
        raise FormatError("these rows hold nothing that can be drawn; measure speed, memory or quality")
    click.echo(text, nl=False, color=True)


@click.command("report", short_help="The report of `all`, of rows measured before.")
@click.argument("rows", nargs=-1, required=True, type=_ROWS)
@folder_option("The folder of the report.", required=True)
@verbosity_options
def report_command(rows: tuple[Path, ...], folder: Path) -> None:
    """The report that `bench all` writes, of rows that were measured one after the other."""
    from gemmule._bench.formats import read_rows
    from gemmule._bench.report import write_report

    for written in write_report([row for path in rows for row in read_rows(path)], folder):
        click.echo(written)
