"""`gemmule bundle`: text model, media file and drafter become one file."""

from pathlib import Path

import click

from gemmule.cli._common import find_model, verbosity_options
from gemmule.cli._writing import force_option, json_option, progress_bar, show_reports

__all__ = ["bundle_command"]


@click.command("bundle")
@click.argument("text")
@click.argument("parts", nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file to write.")
@force_option
@json_option
@verbosity_options
def bundle_command(text: str, parts: tuple[str, ...], output: Path, force: bool, as_json: bool) -> None:
    """Join the GGUF file TEXT and its PARTS (an mmproj file, an assistant file, in any order) into one file
    that llama.cpp still opens as a text model. The weights are copied as they are.
    """
    import gemmule
    from gemmule._convert.matching import ROLES

    names = {architecture: name for name, architecture in ROLES.items()}
    sections: dict[str, Path] = {}
    for part in map(find_model, parts):
        architecture = gemmule.inspect(part).architecture
        role = names.get(architecture)
        if role is None:
            raise click.UsageError(f"{part} is neither an mmproj nor an assistant file but {architecture!r}")
        if role in sections:
            raise click.UsageError(f"{part} and {sections[role]} are both {role} files")
        sections[role] = part
    with progress_bar() as progress:
        report = gemmule.bundle(find_model(text), **sections, dst=output, overwrite=force, progress=progress)
    show_reports([report], as_json)
