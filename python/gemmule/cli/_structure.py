"""The form of an answer: --schema, --regex, --choice, --grammar as arguments of the library."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import click

__all__ = ["schema_of", "structure_of"]

_MAX_FILE = 4 << 20


def structure_of(
    schema: str | None, regex: str | None, choices: tuple[str, ...], grammar: str | None
) -> dict[str, Any]:
    """The keyword argument for the one that was given; empty for none."""
    given = {"--schema": schema, "--regex": regex, "--choice": choices, "--grammar": grammar}
    names = [name for name, value in given.items() if value]
    if len(names) > 1:
        raise click.UsageError(f"{' and '.join(names)} exclude each other")
    if schema:
        return {"schema": schema_of(schema)}
    if regex:
        return {"regex": regex}
    if choices:
        return {"choices": list(choices)}
    return {"grammar": _text_of(grammar, "--grammar")} if grammar else {}


def schema_of(text: str) -> Any:
    """A JSON schema: the text itself, a file, or a class as py:module.Class."""
    if text.startswith("py:"):
        return _class_of(text.removeprefix("py:"))
    if text.lstrip().startswith("{"):
        source, name = text, "--schema"
    else:
        source, name = _text_of(text, "--schema"), f"--schema {text}"
    try:
        schema = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"{name} is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise click.UsageError(f"{name} must be a JSON object")
    return schema


def _text_of(name: str, option: str) -> str:
    path = Path(name).expanduser()
    if not path.is_file():
        raise click.UsageError(f"{option}: there is no file {name}")
    if path.stat().st_size > _MAX_FILE:
        raise click.UsageError(f"{option}: {name} is larger than {_MAX_FILE >> 20} MiB")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise click.UsageError(f"{option}: {name} is not UTF-8 text") from None


def _class_of(dotted: str) -> Any:
    """module.Class, with the folder one is in as a place for modules, as `python -m` has it."""
    module, _, name = dotted.rpartition(".")
    if not module:
        raise click.UsageError(f"--schema py:{dotted} must be py:module.Class")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise click.UsageError(f"--schema py:{dotted} cannot be loaded: {error}") from None
    except Exception as error:  # the module's own code
        raise click.UsageError(f"--schema py:{dotted}: {type(error).__name__}: {error}") from None
