"""Shared by the commands: exit codes, error lines, engine options, reading stdin, finding the model.

Exit codes: 0 ok, 1 unexpected, 2 usage, 3 model missing or bad file, 4 memory or device, 5 network, 6
unreadable media, 7 a check failed, 130 Ctrl-C, 141 closed pipe.
"""

import difflib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from gemmule import _errors

__all__ = [
    "CheckFailedError",
    "context_size",
    "engine_options",
    "exit_code_of",
    "find_model",
    "message_of",
    "piped_text",
    "settings",
    "verbose_option",
]

Command = TypeVar("Command", bound=Callable[..., Any])


class _Settings:
    """State of this process's one command."""

    verbose = False


settings = _Settings()


class CheckFailedError(Exception):
    """A check that the command was asked to do did not pass."""


_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (click.UsageError, 2),
    (_errors.MissingExtraError, 3),
    (_errors.ModelNotFoundError, 3),
    (_errors.FormatError, 3),
    (_errors.UnsupportedError, 3),
    (_errors.ContextLengthError, 2),
    (_errors.MediaError, 6),
    (_errors.GrammarError, 2),
    (_errors.DeviceError, 4),
    (MemoryError, 4),
    (CheckFailedError, 7),
    (_errors.Cancelled, 130),
    (ValueError, 2),
)


def exit_code_of(error: BaseException) -> int:
    return next((code for kind, code in _CODES if isinstance(error, kind)), 1)


def message_of(error: BaseException) -> str:
    """One line for the user."""
    if isinstance(error, click.ClickException):
        text = error.format_message()
    elif exit_code_of(error) == 1:
        text = f"{type(error).__name__}: {error}"
        if not isinstance(error, OSError):
            text += " (unexpected; run with -v for details)"
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())


def verbose_option(command: Command) -> Command:
    """-v after the command name as well as before it."""

    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        settings.verbose = settings.verbose or value

    return click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=remember,
        help="Show the traceback of an error.",
    )(command)


def context_size(value: str) -> int | str:
    """A context size: a number, a number of k (1024), auto or max."""
    text = str(value).strip().lower()
    if text in ("auto", "max"):
        return text
    factor = 1024 if text.endswith("k") else 1
    digits = text.removesuffix("k")
    if not (digits.isascii() and digits.isdigit() and int(digits) > 0):
        raise click.BadParameter(
            f"{value!r} is no context size; use a number such as 4096 or 4k, auto or max"
        )
    return int(digits) * factor


def engine_options(command: Command) -> Command:
    """--ctx, --threads, --kv, --isa."""
    for option in (
        click.option("--isa", envvar="GEMMULE_CPU_ISA", help="Force an instruction-set level (see doctor)."),
        click.option(
            "--kv", type=click.Choice(["f16", "f32"]), default="f16", show_default=True, envvar="GEMMULE_KV",
            help="Number format of the KV cache.",
        ),
        click.option(
            "--threads", type=click.IntRange(1), envvar="GEMMULE_THREADS",
            help="Compute threads.  [physical cores]",
        ),
        click.option(
            "--ctx", "n_ctx", type=context_size, metavar="N|auto|max", default="auto", show_default=True,
            envvar="GEMMULE_CTX", help="Context size in tokens.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def piped_text() -> str:
    """What was piped in; empty when stdin is a terminal or closed."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return ""
    return sys.stdin.buffer.read().decode("utf-8", "replace")


def find_model(name: str | None) -> Path:
    """The file a model name stands for: a path, or a file in the models folder."""
    from gemmule._demo_weights import models_dir

    if not name:
        raise _errors.ModelNotFoundError("no model given; name a .gguf file, or set GEMMULE_MODEL")
    path = Path(name)
    if path.is_file():
        return path
    for candidate in (models_dir() / name, models_dir() / f"{name}.gguf"):
        if candidate.is_file():
            return candidate
    if path.is_dir():
        raise _errors.ModelNotFoundError(f"{name} is a folder; name a .gguf file")
    raise _errors.ModelNotFoundError(f"there is no model file {name}{_near_miss(path)}")


def _near_miss(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.suffix == ".gguf"]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""
