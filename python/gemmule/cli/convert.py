"""`gemmule convert`: a Hugging Face folder becomes one file."""

from pathlib import Path

import click

from gemmule.cli._common import long_verbosity_options, threads_option
from gemmule.cli._writing import (
    check_size_options,
    force_option,
    json_option,
    layout_option,
    progress_bar,
    quant_option,
    show_reports,
    size_options,
    split_overrides,
    tensor_type_option,
)

__all__ = ["convert_command"]


@click.command("convert")
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("dst", required=False)
@quant_option
@size_options
@tensor_type_option
@layout_option
@click.option("--imatrix", type=click.Path(path_type=Path), help="An importance matrix (gemmule imatrix).")
@click.option(
    "--drafter",
    type=click.Path(path_type=Path),
    help="The assistant's folder.  [found beside SRC as *-assistant]",
)
@click.option(
    "--drafter-type",
    metavar="TYPE",
    default=None,
    help="Type of the drafter's matrices.  [Q8_0 or the float type]",
)
@click.option("--no-drafter", "--no-draft", "no_drafter", is_flag=True, help="Leave the drafter out.")
@click.option("--no-vision", is_flag=True, help="Leave the image embedder out.")
@click.option("--no-audio", is_flag=True, help="Leave the audio embedder out.")
@click.option(
    "--dry-run", is_flag=True, help="Say what would be written: tensors, types, size, memory, time."
)
@force_option
@threads_option
@json_option
@long_verbosity_options
def convert_command(
    src: Path,
    dst: str | None,
    types: tuple[str, ...],
    size: int | None,
    bpw: float | None,
    overrides: tuple[str, ...],
    layout: str,
    imatrix: Path | None,
    drafter: Path | None,
    drafter_type: str | None,
    no_drafter: bool,
    no_vision: bool,
    no_audio: bool,
    dry_run: bool,
    force: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Turn the Hugging Face folder SRC into one GGUF file: text, image and audio embedders, drafter,
    tokenizer and chat template. DST is the file to write, or a folder for NAME-TYPE.gguf (with several
    types always a folder); default this folder. SRC may also be a GGUF file.

    The file appears when it is complete: an interrupted run leaves nothing behind.
    """
    import gemmule

    if drafter is not None and no_drafter:
        raise click.UsageError("--drafter and --no-drafter exclude each other")
    check_size_options(size, bpw)
    with progress_bar() as progress:
        reports = gemmule.convert(
            src,
            dst,
            type=list(types),
            size=size,
            bpw=bpw,
            drafter=None if no_drafter else drafter or "auto",
            drafter_type=drafter_type,
            imatrix=imatrix,
            tensor_types=split_overrides(overrides),
            layout=layout,
            vision=not no_vision,
            audio=not no_audio,
            dry_run=dry_run,
            overwrite=force,
            n_threads=threads,
            progress=progress,
        )
    show_reports(reports, as_json)
