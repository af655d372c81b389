"""Shared by the commands that write model files: options, the progress bar, how a report is shown."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from gemmule._checks import byte_size
from gemmule.cli._common import Command, settings

if TYPE_CHECKING:
    from gemmule import ConvertReport

__all__ = [
    "check_size_options",
    "force_option",
    "json_option",
    "layout_option",
    "progress_bar",
    "quant_option",
    "show_reports",
    "size_options",
    "split_overrides",
    "tensor_type_option",
]

Progress = Callable[[int, int, str], None]


def _size(value: str) -> int:
    try:
        return byte_size("the size", value)
    except ValueError as error:  # click would replace its message
        raise click.BadParameter(str(error)) from None


def size_options(command: Command) -> Command:
    """--size and --bpw."""
    for option in (
        click.option(
            "--bpw", type=click.FloatRange(1, 32), metavar="4.5",
            help="The same as bits per weight of the text model.",
        ),
        click.option(
            "--size", type=_size, metavar="7.5GB",
            help="Choose the types so that the file has this size.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def check_size_options(size: int | None, bpw: float | None) -> None:
    """They exclude each other and -q."""
    if size is not None and bpw is not None:
        raise click.UsageError("--size and --bpw exclude each other")
    source = click.get_current_context().get_parameter_source("types")
    if (size is not None or bpw is not None) and source is not click.core.ParameterSource.DEFAULT:
        raise click.UsageError("--size and --bpw choose the types themselves; leave -q out")


def quant_option(command: Command) -> Command:
    """-q, several times for several files."""
    return click.option(
        "-q", "--quant", "types", multiple=True, metavar="TYPE", default=("Q4_K_M",), show_default=True,
        help="Q4_K_M, Q8_0, Q6_K, Q5_K_M, Q3_K_M, Q2_K, Q4_0, BF16, ...; repeat it for several files.",
    )(command)  # fmt: skip


def tensor_type_option(command: Command) -> Command:
    """--tensor-type REGEX=TYPE."""
    return click.option(
        "--tensor-type", "overrides", multiple=True, metavar="REGEX=TYPE",
        help="A type of its own for the tensors whose name matches; the first match counts.",
    )(command)  # fmt: skip


def layout_option(command: Command) -> Command:
    """--layout."""
    return click.option(
        "--layout", type=click.Choice(["gguf", "packed"]), default="gguf", show_default=True,
        help="packed: as gemmule reads it fastest; other programs such as llama.cpp cannot open it.",
    )(command)  # fmt: skip


def force_option(command: Command) -> Command:
    """--force."""
    return click.option("-f", "--force", is_flag=True, help="Replace a file that exists.")(command)


def json_option(command: Command) -> Command:
    """--json."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document.")(command)


def split_overrides(texts: Sequence[str]) -> list[tuple[str, str]]:
    """REGEX=TYPE as pairs; the regex may hold = signs of its own."""
    pairs = []
    for text in texts:
        pattern, sign, kind = text.rpartition("=")
        if not (pattern and sign and kind):
            raise click.BadParameter(
                f"{text!r} is not REGEX=TYPE, such as 'ffn_down=Q6_K'", param_hint="'--tensor-type'"
            )
        pairs.append((pattern, kind.upper()))
    return pairs


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """A bar with speed and time left on stderr, if that is a terminal; else None."""
    if settings.quiet or not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(unit="B", unit_scale=True, dynamic_ncols=True, leave=False, mininterval=0.2) as bar:

        def show(done: int, total: int, what: str) -> None:
            bar.total = total
            bar.set_description_str(what, refresh=False)
            bar.update(done - bar.n)

        yield show


def show_reports(reports: "Sequence[ConvertReport]", as_json: bool) -> None:
    """One block of lines a file on stdout, the warnings on stderr."""
    if as_json:
        documents = [report.to_dict() for report in reports]
        click.echo(json.dumps(documents if len(documents) > 1 else documents[0], ensure_ascii=False))
        return
    for report in reports:
        click.echo(str(report))
    if settings.quiet:
        return
    for warning in dict.fromkeys(warning for report in reports for warning in report.warnings):
        click.echo(f"gemmule: warning: {warning}", err=True)
