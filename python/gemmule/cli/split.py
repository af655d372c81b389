"""`gemmule split`: the parts of one file as separate standard files."""

import json
from pathlib import Path

import click

from gemmule.cli._common import find_model, verbosity_options
from gemmule.cli._writing import force_option, json_option, progress_bar

__all__ = ["split_command"]


@click.command("split")
@click.argument("file")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The folder to write to.  [FILE's folder]"
)
@force_option
@json_option
@verbosity_options
def split_command(file: str, output: Path | None, force: bool, as_json: bool) -> None:
    """Write the parts of FILE as the three files that other programs expect: the text model, mmproj-NAME and
    assistant-NAME. Prints their paths.
    """
    import gemmule

    with progress_bar() as progress:
        paths = gemmule.split(find_model(file), output, overwrite=force, progress=progress)
    if as_json:
        click.echo(json.dumps([str(path) for path in paths], ensure_ascii=False))
    else:
        for path in paths:
            click.echo(path)
