"""`gemmule quantize`: a smaller GGUF file from a larger one."""

from pathlib import Path

import click

from gemmule.cli._common import find_model, long_verbosity_options, threads_option
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

__all__ = ["quantize_command"]


@click.command("quantize")
@click.argument("src")
@click.argument("dst", required=False)
@quant_option
@size_options
@tensor_type_option
@layout_option
@click.option("--imatrix", type=click.Path(path_type=Path), help="An importance matrix (gemmule imatrix).")
@click.option("--drafter-type", metavar="TYPE", help="Type of the drafter's matrices.  [as they are]")
@click.option(
    "--dry-run", is_flag=True, help="Say what would be written: tensors, types, size, memory, time."
)
@force_option
@threads_option
@json_option
@long_verbosity_options
def quantize_command(
    src: str,
    dst: str | None,
    types: tuple[str, ...],
    size: int | None,
    bpw: float | None,
    overrides: tuple[str, ...],
    layout: str,
    imatrix: Path | None,
    drafter_type: str | None,
    dry_run: bool,
    force: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Write the GGUF file SRC again with other tensor types. Start from BF16, F16 or Q8_0: what a smaller
    type has lost does not come back. DST is the file to write, or a folder for NAME-TYPE.gguf (with several
    types always a folder); default this folder.
    """
    import gemmule

    check_size_options(size, bpw)
    with progress_bar() as progress:
        reports = gemmule.quantize_file(
            find_model(src),
            dst,
            list(types),
            size=size,
            bpw=bpw,
            imatrix=imatrix,
            tensor_types=split_overrides(overrides),
            layout=layout,
            drafter_type=drafter_type,
            dry_run=dry_run,
            overwrite=force,
            n_threads=threads,
            progress=progress,
        )
    show_reports(reports, as_json)
