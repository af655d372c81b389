"""The commands of `gemmule bench` that measure: roofline, speed, memory, quality, all."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemmule.cli._common import Command, find_model, settings, threads_option, verbosity_options
from gemmule.cli._output import check_output, write_output

if TYPE_CHECKING:
    from gemmule._bench.engine import Subject
    from gemmule._bench.record import Row

__all__ = ["all_command", "memory_command", "quality_command", "roofline_command", "speed_command"]


def _numbers(value: str) -> tuple[int, ...]:
    """`512` or `512,4096`."""
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise click.BadParameter(f"{value!r} must be whole numbers with commas between them")
    return tuple(int(part) for part in parts)


_TEXT = click.Path(exists=True, dir_okay=False, path_type=Path)
_FORMATS = {"md": "a table", "jsonl": "rows of JSON", "csv": "columns"}


def _files(command: Command) -> Command:
    return click.argument("files", nargs=-1, required=True, metavar="FILE...")(command)


def _form_options(command: Command) -> Command:
    for option in (
        click.option("--format", "form", type=click.Choice(list(_FORMATS)), default="md", show_default=True,
                     help="What is printed."),
        click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write rows of JSON here."),
    ):  # fmt: skip
        command = option(command)
    return command


def _engine_options(command: Command) -> Command:
    for option in (
        click.option("--isa", default="", envvar="GEMMULE_CPU_ISA", help="Force an instruction-set level."),
        click.option("--packed", type=click.Choice(["auto", "yes", "no"]), default="auto", show_default=True,
                     help="Whether weights are brought into the kernels' own order."),
        click.option("--kv", metavar="TYPE", default="f16", show_default=True,
                     help="Number format of the KV cache."),
        threads_option,
    ):  # fmt: skip
        command = option(command)
    return command


_force_option = click.option("--force", is_flag=True, help="Measure even while others use the machine.")


def _speed_options(command: Command) -> Command:
    for option in (
        _force_option,
        click.option("--library", default="", metavar="PATH",
                     help="libllama.so, or llama-bench, of the peer.  [xllamacpp]"),
        click.option("--peer", type=click.Choice(["llama.cpp"]), help="Measure this engine too."),
        click.option("--first/--no-first", default=True, help="Time to a first token: text, picture, sound."),
        click.option("--steps", type=_numbers, metavar="T,T", default=None, help="Also steps of T tokens."),
        click.option("-r", "--rounds", type=click.IntRange(1, 1000), default=5, show_default=True,
                     help="Processes for each file; files take turns."),
        click.option("-d", "--depth", type=_numbers, default="0", show_default=True, metavar="N,N",
                     help="Tokens before them."),
        click.option("-n", "--gen", type=_numbers, default="128", show_default=True, metavar="N,N",
                     help="Single tokens."),
        click.option("-p", "--prompt", type=_numbers, default="512", show_default=True, metavar="N,N",
                     help="Lengths of prompts."),
    ):  # fmt: skip
        command = option(command)
    return command


def subjects_of(files: Sequence[str], options: dict[str, Any]) -> "list[Subject]":
    """Every file in every engine that was asked for."""
    from gemmule._bench.engine import Subject

    made = []
    for file in files:
        shared = {
            "path": str(find_model(file)),
            "n_threads": options["threads"] or 0,
            "kv_type": options["kv"],
        }
        made.append(Subject(**shared, packed=options["packed"], isa=options["isa"]))
        if options.get("peer") and not _is_llama_bench(options):
            made.append(Subject(**shared, engine=options["peer"], library=options["library"]))
    return made


def _is_llama_bench(options: dict[str, Any]) -> bool:
    return Path(options["library"]).name.startswith("llama-bench")


def progress_line() -> Callable[[str], None]:
    """Says on stderr what is being done, if somebody looks."""
    if settings.quiet or not sys.stderr.isatty():
        return lambda _: None
    return lambda text: click.echo(f"gemmule: {text}", err=True)


def measured_speed(files: Sequence[str], options: dict[str, Any]) -> "list[Row]":
    """Speed rows of ours and of the peer."""
    from gemmule._bench.peer import run_llama_bench
    from gemmule._bench.roofline import kept_roofline
    from gemmule._bench.speed import SpeedPlan, measure_speed

    plan = SpeedPlan(
        options["prompt"], options["gen"], options["depth"], options["steps"] or (), options["first"],
        rounds=options["rounds"],
    )  # fmt: skip
    rows = measure_speed(
        subjects_of(files, options), plan,
        roofline=kept_roofline(), force=options["force"], progress=progress_line(),
    )  # fmt: skip
    if options.get("peer") and _is_llama_bench(options):
        for file in files:
            rows += run_llama_bench(options["library"], str(find_model(file)), plan, rows[0]["n_threads"])
    return rows


def show(rows: "list[Row]", markdown: str, form: str, output: Path | None) -> None:
    """Prints the rows, and keeps them."""
    from gemmule._bench.formats import csv_text, jsonl_text

    if output is not None:
        write_output(output, jsonl_text(rows))
    click.echo({"jsonl": jsonl_text, "csv": csv_text}[form](rows) if form != "md" else markdown, nl=False)


@click.command("roofline")
@click.option("--again", is_flag=True, help="Measure even if this machine has been measured.")
@click.option("--json", "as_json", is_flag=True, help="Rows of JSON.")
@_force_option
@threads_option
@verbosity_options
def roofline_command(again: bool, as_json: bool, force: bool, threads: int | None) -> None:
    """What this machine can do: clock, read bandwidth, arithmetic peaks, the cost of a barrier. Kept, and the
    denominator of the efficiencies of `bench speed`.
    """
    from gemmule._bench.roofline import kept_roofline, measure_roofline

    found = None if again or threads else kept_roofline()
    found = found or measure_roofline(threads or 0, force=force)
    click.echo(found.lines() if as_json else found.text(), nl=False)


@click.command("speed")
@_files
@_speed_options
@_engine_options
@_form_options
@verbosity_options
def speed_command(files: tuple[str, ...], form: str, output: Path | None, **options: Any) -> None:
    """Prompts and single tokens, at several depths, and the time to a first token.

    Like llama-bench, with these differences: every repetition is a process of its own, files take turns, and
    a greedy choice follows every token.
    """
    from gemmule._bench.formats import speed_markdown

    if output is not None:
        check_output(output)
    rows = measured_speed(files, options)
    show(rows, speed_markdown(rows), form, output)


@click.command("memory")
@_files
@click.option(
    "-c",
    "--ctx",
    type=_numbers,
    default="512,4096",
    show_default=True,
    metavar="N,N",
    help="Contexts to fill.",
)
@click.option(
    "--kv",
    "kvs",
    multiple=True,
    default=("f16",),
    metavar="TYPE",
    show_default=True,
    help="Number format of the KV cache (repeatable).",
)
@click.option(
    "--packed",
    type=click.Choice(["auto", "yes", "no"]),
    default="auto",
    show_default=True,
    help="Whether weights are brought into the kernels' own order.",
)
@threads_option
@_form_options
@verbosity_options
def memory_command(
    files: tuple[str, ...], ctx: tuple[int, ...], kvs: tuple[str, ...], packed: str, threads: int | None,
    form: str, output: Path | None,
) -> None:  # fmt: skip
    """What a process takes that fills its context, beside what was promised."""
    from gemmule._bench.memory import measure_memory, memory_markdown

    if output is not None:
        check_output(output)
    paths = [str(find_model(file)) for file in files]
    rows = measure_memory(paths, ctx, kvs, packed=packed, n_threads=threads or 0, progress=progress_line())
    show(rows, memory_markdown(rows), form, output)


def _quality_options(command: Command) -> Command:
    for option in (
        click.option("--ask", type=click.IntRange(0), default=0, metavar="N",
                     help="Also N questions of each kind about pictures, sounds and tools (demo model)."),
        click.option("-w", "--windows", type=click.IntRange(1), default=8, show_default=True,
                     help="At most this many windows of each text."),
        click.option("-c", "--ctx", type=click.IntRange(16, 1 << 20), default=512, show_default=True,
                     help="Tokens of a window; its second half is scored."),
        click.option("--text", "texts", multiple=True, metavar="FILE", type=_TEXT,
                     help="A text file instead of the built-in texts (repeatable)."),
        click.option("--ref", metavar="FILE", help="The file to compare with, such as the BF16 one."),
    ):  # fmt: skip
        command = option(command)
    return command


@click.command("quality")
@_files
@_quality_options
@_engine_options
@_form_options
@verbosity_options
def quality_command(files: tuple[str, ...], form: str, output: Path | None, **options: Any) -> None:
    """Perplexity, and how far the predictions are from those of a reference file: KL divergence, same top
    token, change of probabilities; by category of text.
    """
    from gemmule._bench.quality_report import quality_markdown

    if output is not None:
        check_output(output)
    rows = measured_quality(files, options)
    show(rows, quality_markdown(rows), form, output)


def measured_quality(files: Sequence[str], options: dict[str, Any]) -> "list[Row]":
    """Quality rows, with the questions if they were asked for."""
    from gemmule._bench.quality import QualityPlan, measure_quality
    from gemmule._bench.questions import ask_questions
    from gemmule._bench.texts import load_texts

    plan = QualityPlan(load_texts(options["texts"]), options["ctx"], options["windows"])
    subjects = subjects_of(files, {**options, "peer": None})
    reference = subjects_of([options["ref"]], {**options, "peer": None})[0] if options["ref"] else None
    rows = measure_quality(subjects, plan, reference=reference, progress=progress_line())
    if options["ask"]:
        rows += ask_questions(subjects, options["ask"], progress=progress_line())
    return rows


@click.command("all")
@_files
@click.option(
    "-o",
    "--output",
    "folder",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder of the report.",
)
@click.option(
    "--context",
    type=_numbers,
    default="512,4096",
    show_default=True,
    metavar="N,N",
    help="Contexts for the memory.",
)
@click.option(
    "--quality-kv",
    "kvs",
    multiple=True,
    default=("f16", "q8_0"),
    show_default=True,
    help="Number formats of the KV cache for the memory.",
)
@_speed_options
@_quality_options
@_engine_options
@verbosity_options
def all_command(
    files: tuple[str, ...], folder: Path, context: tuple[int, ...], kvs: tuple[str, ...], **options: Any
) -> None:
    """Everything, and a report of it in one folder: rows, tables, a page of HTML and its pictures."""
    from gemmule._bench.memory import measure_memory
    from gemmule._bench.plots import need_matplotlib
    from gemmule._bench.report import write_report
    from gemmule._bench.roofline import kept_roofline, measure_roofline

    need_matplotlib()
    if kept_roofline() is None:
        measure_roofline(force=options["force"])
    rows = measured_speed(files, options)
    rows += measure_memory(
        [str(find_model(file)) for file in files], context, kvs,
        packed=options["packed"], n_threads=options["threads"] or 0, progress=progress_line(),
    )  # fmt: skip
    rows += measured_quality(files, options)
    for written in write_report(rows, folder):
        click.echo(written)
