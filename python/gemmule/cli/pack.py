"""`gemmule pack`: the matrices of a file in the order in which kernels read them."""

import click

from gemmule.cli._common import find_model, verbosity_options
from gemmule.cli._writing import force_option, json_option, progress_bar, show_reports

__all__ = ["pack_command"]


@click.command("pack")
@click.argument("src")
@click.argument("dst", required=False)
@force_option
@json_option
@verbosity_options
def pack_command(src: str, dst: str | None, force: bool, as_json: bool) -> None:
    """Write the GGUF file SRC again with its matrices in the packed layout, which gemmule reads fastest and
    maps without copying. Only gemmule opens a packed file, llama.cpp cannot; `gemmule unpack` gives back SRC
    byte for byte. DST is the file to write, or a folder for NAME.packed.gguf; default this folder.
    """
    import gemmule

    with progress_bar() as progress:
        report = gemmule.pack(find_model(src), dst, overwrite=force, progress=progress)
    show_reports([report], as_json)
