"""`--output`: the answer in a file, whole or not at all."""

import os
from pathlib import Path

import click

__all__ = ["check_output", "write_output"]


def check_output(output: Path) -> None:
    """Refuses a place that cannot be written."""
    folder = output.resolve().parent
    if not folder.is_dir():
        raise click.UsageError(f"--output: there is no folder {folder}")
    # A regular file is replaced by a new one, so it is the folder that must allow it; a device is written to.
    replaced = output.is_file() or not output.exists()
    if not os.access(folder if replaced else output, os.W_OK):
        raise click.UsageError(f"--output: {output} cannot be written")
    if output.is_file() and not os.access(output, os.W_OK):
        raise click.UsageError(f"--output: {output} is write-protected")


def write_output(output: Path, text: str) -> None:
    """The whole text or the old file, never a part; with the permissions a plain write would give."""
    from gemmule._cache import public_write

    target = output.resolve()
    if target.exists() and not target.is_file():
        target.write_text(text, encoding="utf-8")
        return
    with public_write(target) as out:
        out.write(text.encode("utf-8", "replace"))
