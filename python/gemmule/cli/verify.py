"""`gemmule verify`: is every byte of a model file what its writer wrote?"""

import json

import click

from gemmule.cli._common import CheckFailedError, find_model, verbosity_options
from gemmule.cli._writing import json_option, progress_bar

__all__ = ["verify_command"]


@click.command("verify")
@click.argument("file", required=False, envvar="GEMMULE_MODEL")
@click.option("--full", is_flag=True, help="Compare the SHA-256 of the sections too (slower).")
@json_option
@verbosity_options
def verify_command(file: str | None, full: bool, as_json: bool) -> None:
    """Check the structure of FILE and the checksum of every tensor and section; in a file without checksums,
    that no weight is NaN or infinite. FILE defaults to $GEMMULE_MODEL. Exit code 7 if something is wrong.
    """
    import gemmule

    with progress_bar() as progress:
        report = gemmule.verify(find_model(file), full=full, progress=progress)
    if as_json:
        click.echo(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        click.echo(str(report))
    if not report.ok:
        raise CheckFailedError(f"{report.path} is damaged: {report.problems[0]}")
