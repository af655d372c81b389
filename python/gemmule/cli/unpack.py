"""`gemmule unpack`: a packed file in GGUF's layout again."""

import click

from gemmule.cli._common import find_model, verbosity_options
from gemmule.cli._writing import force_option, json_option, progress_bar, show_reports

__all__ = ["unpack_command"]


@click.command("unpack")
@click.argument("src")
@click.argument("dst", required=False)
@force_option
@json_option
@verbosity_options
def unpack_command(src: str, dst: str | None, force: bool, as_json: bool) -> None:
    """Write the packed file SRC again in GGUF's layout, which other programs open: the file that was packed,
    byte for byte. DST is the file to write, or a folder for NAME.gguf (NAME without .packed); default this
    folder.
    """
    import gemmule

    with progress_bar() as progress:
        report = gemmule.unpack(find_model(src), dst, overwrite=force, progress=progress)
    show_reports([report], as_json)
