"""The commands of `gemmule bench` that measure: roofline, speed, memory, quality, all."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemmule.cli._bench_options import (
    bench_engine_options,
    files_argument,
    force_option,
    form_options,
    numbers,
    quality_options,
    speed_options,
)
from gemmule.cli._common import find_model, settings, threads_option, verbosity_options
from gemmule.cli._output import check_output, write_output

if TYPE_CHECKING:
    from gemmule._bench.engine import Subject
    from gemmule._bench.record import Row

__all__ = ["all_command", "memory_command", "quality_command", "roofline_command", "speed_command"]


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
        options["prompt"], options["gen"], options["depth"], options["steps"] or (),
        options["first"], options["drafting"], rounds=options["rounds"],
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
@force_option
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
@files_argument
@speed_options
@bench_engine_options
@form_options
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
@files_argument
@click.option(
    "-c",
    "--ctx",
    type=numbers,
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
@form_options
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


@click.command("quality")
@files_argument
@quality_options
@bench_engine_options
@form_options
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
@files_argument
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
    type=numbers,
    default="512,4096",
    show_default=True,
    metavar="N,N",
    help="Contexts for the memory.",
)
@click.option(
    "--memory-kv",
    "kvs",
    multiple=True,
    default=("f16", "q8_0"),
    show_default=True,
    help="Number formats of the KV cache for the memory.",
)
@speed_options
@quality_options
@bench_engine_options
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
