"""Options of the commands of `gemmule bench`, in groups."""

from collections.abc import Callable
from pathlib import Path

import click

from gemmule.cli._common import Command, threads_option

__all__ = [
    "bench_engine_options",
    "contexts",
    "files_argument",
    "folder_option",
    "force_option",
    "form_options",
    "numbers",
    "packed_option",
    "quality_options",
    "speed_options",
]


def numbers(value: str) -> tuple[int, ...]:
    """`512` or `512,4096`."""
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise click.BadParameter(f"{value!r} must be whole numbers with commas between them")
    return tuple(int(part) for part in parts)


def contexts(value: str) -> tuple[int, ...]:
    """`512,4096`, none so small that a sentence does not fit."""
    sizes = numbers(value)
    if min(sizes) < _MIN_CONTEXT:
        raise click.BadParameter(f"a context to fill has at least {_MIN_CONTEXT} tokens")
    return sizes


_MIN_CONTEXT = 64
_EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)
_LIBRARY = click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path)
_FORMATS = {"md": "a table", "jsonl": "rows of JSON", "csv": "columns"}


def files_argument(command: Command) -> Command:
    return click.argument("files", nargs=-1, required=True, metavar="FILE...")(command)


def form_options(command: Command) -> Command:
    for option in (
        click.option("--format", "form", type=click.Choice(list(_FORMATS)), default="md", show_default=True,
                     help="What is printed."),
        click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path),
                     help="Also write rows of JSON here, while they are measured."),
    ):  # fmt: skip
        command = option(command)
    return command


def packed_option(command: Command) -> Command:
    return click.option(
        "--packed", type=click.Choice(["auto", "yes", "no"]), default="auto", show_default=True,
        help="Whether weights are brought into the kernels' own order.",
    )(command)  # fmt: skip


def folder_option(text: str, *, required: bool) -> Callable[[Command], Command]:
    """--output of a command that writes several files."""
    return click.option(
        "-o",
        "--output",
        "folder",
        required=required,
        type=click.Path(file_okay=False, path_type=Path),
        help=text,
    )


def bench_engine_options(command: Command) -> Command:
    for option in (
        click.option("--isa", default="", envvar="GEMMULE_CPU_ISA", help="Force an instruction-set level."),
        packed_option,
        click.option("--kv", metavar="TYPE", default="f16", show_default=True,
                     help="Number format of the KV cache."),
        threads_option,
    ):  # fmt: skip
        command = option(command)
    return command


force_option = click.option("--force", is_flag=True, help="Measure even while others use the machine.")


def speed_options(command: Command) -> Command:
    for option in (
        force_option,
        click.option("--library", metavar="PATH", type=_LIBRARY,
                     help="libllama.so, or llama-bench, of the peer.  [xllamacpp]"),
        click.option("--peer", type=click.Choice(["llama.cpp"]), help="Measure this engine too."),
        click.option("--drafting/--no-drafting", default=True, help="Generation with drafts and without."),
        click.option("--first/--no-first", default=True, help="Time to a first token: text, picture, sound."),
        click.option("--steps", type=numbers, metavar="T,T", default=None, help="Also steps of T tokens."),
        click.option("-r", "--rounds", type=click.IntRange(1, 1000), default=5, show_default=True,
                     help="Processes for each file; files take turns."),
        click.option("-d", "--depth", type=numbers, default="0", show_default=True, metavar="N,N",
                     help="Tokens before them."),
        click.option("-n", "--gen", type=numbers, default="128", show_default=True, metavar="N,N",
                     help="Single tokens; 0: none."),
        click.option("-p", "--prompt", type=numbers, default="512", show_default=True, metavar="N,N",
                     help="Lengths of prompts; 0: none."),
    ):  # fmt: skip
        command = option(command)
    return command


def quality_options(command: Command) -> Command:
    for option in (
        click.option("--ask", type=click.IntRange(0), default=0, metavar="N",
                     help="Also N questions of each kind about pictures, sounds and tools (demo model)."),
        click.option("-w", "--windows", type=click.IntRange(1), default=8, show_default=True,
                     help="At most this many windows of each text."),
        click.option("-c", "--ctx", type=click.IntRange(16, 1 << 20), default=512, show_default=True,
                     help="Tokens of a window; its second half is scored."),
        click.option("--text", "texts", multiple=True, metavar="FILE", type=_EXISTING,
                     help="A text file instead of the built-in texts (repeatable)."),
        click.option("--ref", metavar="FILE", help="The file to compare with, such as the BF16 one."),
    ):  # fmt: skip
        command = option(command)
    return command
