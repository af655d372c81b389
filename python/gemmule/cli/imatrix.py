"""`gemmule imatrix`: which inputs of each matrix matter, measured on a text."""

import json
from pathlib import Path

import click

from gemmule.cli._common import find_model, threads_option, verbosity_options
from gemmule.cli._writing import force_option, json_option, progress_bar

__all__ = ["imatrix_command"]


@click.command("imatrix")
@click.argument("model")
@click.argument("text", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file to write.")
@click.option(
    "--ctx",
    "n_ctx",
    type=click.IntRange(16, 1 << 20),
    default=512,
    show_default=True,
    help="Tokens of a window.",
)
@click.option("--chunks", "n_chunks", type=click.IntRange(1), help="Windows to read at most.  [all]")
@force_option
@threads_option
@json_option
@verbosity_options
def imatrix_command(
    model: str,
    text: Path,
    output: Path,
    n_ctx: int,
    n_chunks: int | None,
    force: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Run MODEL over the text file TEXT and write the mean square of every input column of every matrix, in
    llama.cpp's format, for `convert --imatrix` and `quantize --imatrix`. Use the largest type of the model
    that fits into memory and a text like those the model will meet.
    """
    import gemmule

    with progress_bar() as progress:
        made = gemmule.imatrix(
            find_model(model),
            text,
            output,
            n_ctx=n_ctx,
            n_chunks=n_chunks,
            overwrite=force,
            n_threads=threads,
            progress=progress,
        )
    if as_json:
        facts = {"path": str(output), "n_tensors": len(made.entries), "n_windows": made.n_chunks}
        click.echo(json.dumps({**facts, "window": made.chunk_size}, ensure_ascii=False))
    else:
        click.echo(str(made))
