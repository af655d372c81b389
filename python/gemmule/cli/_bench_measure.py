"""The commands of `gemmule bench` that measure: roofline, speed, memory, quality, all."""

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemmule.cli._bench_keep import KeptRows
from gemmule.cli._bench_options import (
    bench_engine_options,
    contexts,
    files_argument,
    folder_option,
    force_option,
    form_options,
    packed_option,
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

    names = Counter(Path(file).name for file in files)
    if twice := next((name for name, n in names.items() if n > 1), None):
        raise click.UsageError(f"two files are called {twice}, which is what rows go by; rename one")
    made = []
    for file in files:
        shared = {
            "path": str(find_model(file)),
            "n_threads": options["threads"] or 0,
            "kv_type": options["kv"],
        }
        made.append(Subject(**shared, packed=options["packed"], isa=options["isa"]))
        if options.get("peer") and not _is_llama_bench(options):
            made.append(Subject(**shared, engine=options["peer"], library=str(options["library"] or "")))
    return made


def _is_llama_bench(options: dict[str, Any]) -> bool:
    return options["library"] is not None and options["library"].name.startswith("llama-bench")


def progress_line() -> Callable[[str], None]:
    """Says on stderr what is being done, if somebody looks."""
    if settings.quiet or not sys.stderr.isatty():
        return lambda _: None
    return lambda text: click.echo(f"gemmule: {text}", err=True)


def measured_speed(files: Sequence[str], options: dict[str, Any], keep: KeptRows) -> "list[Row]":
    """Speed rows of ours and of the peer."""
    from gemmule._bench.peer import run_llama_bench
    from gemmule._bench.speed import SpeedPlan, measure_speed
    from gemmule._roofline import kept_roofline

    if options["library"] and not options["peer"]:
        raise click.UsageError("--library is the peer's; add --peer llama.cpp")
    n_prompt, n_gen = (tuple(n for n in options[name] if n) for name in ("prompt", "gen"))  # 0: none
    plan = SpeedPlan(
        n_prompt, n_gen, options["depth"], options["steps"] or (), options["first"], options["drafting"],
        rounds=options["rounds"],
    )  # fmt: skip
    rows = measure_speed(
        subjects_of(files, options), plan,
        roofline=kept_roofline(), force=options["force"], progress=progress_line(), keep=keep,
    )  # fmt: skip
    if options.get("peer") and _is_llama_bench(options):
        for file in files:
            for row in run_llama_bench(
                str(options["library"]), str(find_model(file)), plan, rows[0]["n_threads"]
            ):
                rows.append(row)
                keep(rows)
    return rows


def prepared_quality(files: Sequence[str], options: dict[str, Any]) -> "Callable[[KeptRows], list[Row]]":
    """Checks everything that can be wrong with texts and files; what is returned measures quality, and asks
    the questions if they were wanted.
    """
    from gemmule._bench.quality import QualityPlan, measure_quality, shared_windows
    from gemmule._bench.questions import ask_questions, check_modalities
    from gemmule._bench.texts import load_texts

    plan = QualityPlan(load_texts(options["texts"]), options["ctx"], options["windows"])
    subjects = subjects_of(files, {**options, "peer": None})
    reference = subjects_of([options["ref"]], {**options, "peer": None})[0] if options["ref"] else None
    windows = shared_windows([*subjects, *([reference] if reference else [])], plan)
    if options["ask"]:
        check_modalities(subjects)

    def measure(keep: KeptRows) -> "list[Row]":
        line = progress_line()
        rows = measure_quality(subjects, plan, reference=reference, windows=windows, progress=line, keep=keep)
        if not options["ask"]:
            return rows
        answered = partial(_keep_both, keep, rows)
        return rows + ask_questions(subjects, options["ask"], progress=line, keep=answered)

    return measure


def _keep_both(keep: KeptRows, old: "list[Row]", new: "Sequence[Row]") -> None:
    keep([*old, *new])


def show(rows: "list[Row]", markdown: str, form: str, output: Path | None) -> None:
    """Prints the rows, and writes them."""
    from gemmule._bench.formats import csv_text, jsonl_text

    if output is not None:
        write_output(output, jsonl_text(rows))
    click.echo({"jsonl": jsonl_text, "csv": csv_text}[form](rows) if form != "md" else markdown, nl=False)


@click.command("roofline", short_help="What this machine can do; kept.")
@click.option("--again", is_flag=True, help="Measure even if this machine has been measured.")
@click.option("--json", "as_json", is_flag=True, help="Rows of JSON.")
@force_option
@threads_option
@verbosity_options
def roofline_command(again: bool, as_json: bool, force: bool, threads: int | None) -> None:
    """What this machine can do: clock, read bandwidth, arithmetic peaks, the cost of a barrier, passes of
    several tokens. Kept; the denominator of the efficiencies of `bench speed`, and where models begin.
    """
    from gemmule._roofline import machine_roofline, measure_roofline

    anew = again or threads is not None
    found = measure_roofline(threads or 0, force=force) if anew else machine_roofline(force=force)
    click.echo(found.lines() if as_json else found.text(), nl=False)


@click.command("speed", short_help="Prompts, single tokens, time to a first token.")
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
    with KeptRows(output) as keep:
        rows = measured_speed(files, options, keep)
    show(rows, speed_markdown(rows), form, output)


@click.command("memory", short_help="What a process takes, beside what was promised.")
@files_argument
@click.option(
    "-c",
    "--ctx",
    type=contexts,
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
@packed_option
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
    _check_memory(paths, ctx, kvs)
    with KeptRows(output) as keep:
        rows = measure_memory(
            paths, ctx, kvs, packed=packed, n_threads=threads or 0, progress=progress_line(), keep=keep
        )
    show(rows, memory_markdown(rows), form, output)


@click.command("quality", short_help="Perplexity and distance from a reference file.")
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
    with KeptRows(output) as keep:
        rows = prepared_quality(files, options)(keep)
    show(rows, quality_markdown(rows), form, output)


@click.command("all", short_help="All of these, with a report of tables and pictures.")
@files_argument
@folder_option("The folder of the report.", required=True)
@click.option(
    "--context",
    type=contexts,
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
    """Everything, and a report of it in one folder: rows, tables, a page of HTML and its pictures. Rows are
    written as they are measured.
    """
    from gemmule._bench.memory import measure_memory
    from gemmule._bench.plots import need_matplotlib
    from gemmule._bench.report import write_report
    from gemmule._roofline import machine_roofline

    need_matplotlib()
    paths = [str(find_model(file)) for file in files]
    _check_memory(paths, context, kvs)
    quality = prepared_quality(files, options)
    machine_roofline(force=options["force"])
    folder.mkdir(parents=True, exist_ok=True)
    with KeptRows(folder, folder=True) as keep:
        rows = measured_speed(files, options, keep)
        rows += measure_memory(
            paths, context, kvs,
            packed=options["packed"], n_threads=options["threads"] or 0, progress=progress_line(), keep=keep,
        )  # fmt: skip
        rows += quality(keep)
        for written in write_report(rows, folder):
            click.echo(written)


def _check_memory(paths: Sequence[str], contexts: Sequence[int], kvs: Sequence[str]) -> None:
    """What can be wrong with a file, a context or a number format is wrong in its plan, in milliseconds."""
    from gemmule import estimate

    for path, n_ctx, kv_type in itertools.product(paths, contexts, kvs):
        estimate(path, n_ctx=n_ctx, kv_type=kv_type)
