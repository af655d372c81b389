"""Shared by the commands: exit codes, error lines, engine options, reading stdin, finding the model.

Exit codes: 0 ok, 1 unexpected, 2 usage, 3 model missing or bad file, 4 memory, disk or device, 5 network, 6
unreadable media, 7 a check failed, 130 Ctrl-C, 141 closed pipe.
"""

import difflib
import errno
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from gemmule import _errors
from gemmule._checks import MAX_CONTEXT, MAX_THREADS

__all__ = [
    "CheckFailedError",
    "context_line",
    "context_size",
    "engine_options",
    "exit_code_of",
    "find_model",
    "long_verbosity_options",
    "message_of",
    "piped_text",
    "settings",
    "split_model",
    "threads_option",
    "verbosity_options",
]

Command = TypeVar("Command", bound=Callable[..., Any])


class _Settings:
    """State of this process's one command."""

    verbose = False
    quiet = False
    kept: Any = None  # a model that the end of the process frees faster than the interpreter would


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
    (FileExistsError, 2),
    (FileNotFoundError, 2),
    (IsADirectoryError, 2),
    (NotADirectoryError, 2),
    (PermissionError, 4),
    (ValueError, 2),
)


def exit_code_of(error: BaseException) -> int:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return 4
    return next((code for kind, code in _CODES if isinstance(error, kind)), 1)


def message_of(error: BaseException) -> str:
    """One line for the user."""
    if isinstance(error, click.BadParameter) and (variable := _variable_of(error)):
        text = f"{variable}: {error.message}"
    elif isinstance(error, click.ClickException):
        text = error.format_message()
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror
        if error.filename is not None and str(error.filename) not in text:
            text = f"{error.filename}: {text}"
    elif exit_code_of(error) == 1:
        text = f"{type(error).__name__}: {error}"
        if not isinstance(error, OSError):
            text += " (unexpected; run with -v for details)"
    else:
        text = _options_for_arguments(str(error)) or type(error).__name__
    return " ".join(text.split())


def _variable_of(error: click.BadParameter) -> str | None:
    """The environment variable that a bad value came from."""
    ctx, parameter = error.ctx, error.param
    if ctx is None or parameter is None or parameter.name is None:
        return None
    if ctx.get_parameter_source(parameter.name) != click.core.ParameterSource.ENVIRONMENT:
        return None
    if isinstance(parameter.envvar, str):
        return parameter.envvar
    return f"{ctx.auto_envvar_prefix}_{parameter.name.upper()}"


def _options_for_arguments(text: str) -> str:
    """The library names its arguments; here they are options."""
    names = {
        "n_ctx": "--ctx", "n_threads": "--threads", "kv_type": "--kv", "isa": "--isa",
        "memory_limit": "--memory-limit",
    }  # fmt: skip
    return re.sub(
        r"(?<![\w/.-])(n_ctx|n_threads|kv_type|memory_limit|isa(?==))(?![\w/]|\.\w)",
        lambda found: names[found[1]],
        text,
    )


def context_line(reason: str) -> str:
    """Which context was chosen, and why."""
    return f"context {_options_for_arguments(reason)}"


def verbosity_options(command: Command) -> Command:
    """-v and -q after the command name as well as before it."""
    return _verbosity(command, ("-q", "--quiet"))


def long_verbosity_options(command: Command) -> Command:
    """The same for commands whose -q means something else."""
    return _verbosity(command, ("--quiet",))


def _verbosity(command: Command, quiet: tuple[str, ...]) -> Command:
    def remember(ctx: click.Context, option: click.Parameter, value: bool) -> None:
        if value and option.name is not None:
            setattr(settings, option.name, True)

    for names, text in (
        (quiet, "Nothing but errors on stderr."),
        (("-v", "--verbose"), "Show the traceback of an error."),
    ):
        option = click.option(*names, is_flag=True, expose_value=False, callback=remember, help=text)
        command = option(command)
    return command


def context_size(value: str) -> int | str:
    """A context size: a number, a number of k (1024), auto or max."""
    text = str(value).strip().lower()
    if text in ("auto", "max"):
        return text
    factor = 1024 if text.endswith("k") else 1
    digits = text.removesuffix("k").lstrip("0")
    if not (digits.isascii() and digits.isdigit()):
        raise click.BadParameter(
            f"{value!r} is no context size; use a number such as 4096 or 4k, auto or max"
        )
    if len(digits) > 10 or int(digits) * factor > MAX_CONTEXT:
        raise click.BadParameter(f"the context size must be at most {MAX_CONTEXT}")
    return int(digits) * factor


def threads_option(command: Command) -> Command:
    """--threads."""
    return click.option(
        "--threads",
        type=click.IntRange(1, MAX_THREADS),
        envvar="GEMMULE_THREADS",
        help="Compute threads.  [physical cores]",
    )(command)


def engine_options(command: Command) -> Command:
    """--ctx, --threads, --kv, --packed, --memory-limit, --isa, --device."""
    for option in (
        click.option(
            "--device", type=click.Choice(["auto", "cpu"]), default="auto", show_default=True,
            envvar="GEMMULE_DEVICE", help="What computes.",
        ),
        click.option("--isa", envvar="GEMMULE_CPU_ISA", help="Force an instruction-set level (see doctor)."),
        click.option(
            "--kv", metavar="TYPE", default="f16", show_default=True, envvar="GEMMULE_KV",
            help="Number format of the KV cache: f16, q8_0 or f32, or sliding=f16,global=q8_0.",
        ),
        click.option(
            "--memory-limit", metavar="SIZE", envvar="GEMMULE_MEMORY_LIMIT",
            help="What the model and its context may take, such as 7.5GB.",
        ),
        click.option(
            "--packed", type=click.Choice(["auto", "yes", "no"]), default="auto", show_default=True,
            envvar="GEMMULE_PACKED", help="Reorder the weights in memory for speed while the model runs.",
        ),
        threads_option,
        click.option(
            "--ctx", "n_ctx", type=context_size, metavar="N|auto|max", default="auto", show_default=True,
            envvar="GEMMULE_CTX", help="Context size in tokens.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def piped_text(*, wait: bool = False) -> str:
    """What was piped in, without a byte order mark and one last line end; empty when stdin is closed, or a
    terminal that is not to be waited for.
    """
    if sys.stdin is None or sys.stdin.closed or (sys.stdin.isatty() and not wait):
        return ""
    text = sys.stdin.buffer.read().decode("utf-8-sig", "replace")
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def split_model(words: list[str], model: str | None, given: bool) -> tuple[str | None, list[str]]:
    """Model name and the other words; `model` comes from -m when `given`, else from the environment."""
    names_a_model = bool(words) and _names_a_model(words[0])
    if given or (model and not names_a_model):
        return model, words
    if words and (names_a_model or len(words) > 1 or model is None):
        return words[0], words[1:]
    return model, words


def _names_a_model(word: str) -> bool:
    """By its ending, its first bytes, or as a name in the models folder; a picture is a file but none."""
    from gemmule._demo_weights import models_dir

    if word.endswith(".gguf"):
        return True
    if not word or "\n" in word or len(word) > 1000:  # a text, and maybe longer than a file name can be
        return False
    try:
        path = Path(word)
        if path.is_file():
            with path.open("rb") as file:
                return file.read(4) == b"GGUF"
    except (OSError, ValueError):
        return False
    return "/" not in word and (models_dir() / f"{word}.gguf").is_file()


def find_model(name: str | None) -> Path:
    """The file a model name stands for: a path, or a file in the models folder."""
    from gemmule._demo_weights import models_dir

    if not name:
        raise click.UsageError("no model given; name a .gguf file, or set GEMMULE_MODEL")
    path = Path(name)
    if path.is_file():
        return path
    for candidate in (models_dir() / name, models_dir() / f"{name}.gguf"):
        if candidate.is_file():
            return candidate
    if path.is_dir():
        raise _errors.ModelNotFoundError(f"{name} is a folder; name a .gguf file")
    if path.exists():
        raise _errors.ModelNotFoundError(f"{name} is not a regular file; name a .gguf file")
    near = _near_miss(path, path.parent) or _near_miss(path, models_dir())
    raise _errors.ModelNotFoundError(f"there is no model file {name}{near}")


def _near_miss(path: Path, folder: Path) -> str:
    try:
        stems = [entry.stem for entry in folder.iterdir() if entry.suffix == ".gguf"]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name.removesuffix(".gguf"), stems, n=1)
    return f"; did you mean {folder / near[0]}.gguf?" if near else ""
