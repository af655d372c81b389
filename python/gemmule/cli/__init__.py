"""The command line. One file per command, loaded only when that command runs; `gemmule --help` imports
click alone.

stdout is the answer and nothing else; statistics, progress and errors go to stderr. Exit codes: see
_common.py.
"""

import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from gemmule._interrupt import INTERRUPTED, interrupted
from gemmule.cli._common import exit_code_of, message_of, settings

__all__ = ["root", "run_command_line"]

_COMMANDS = {
    "run": "Ask once about a text and files, or chat when nothing is asked",
    "chat": "Talk in the terminal",
    "convert": "Turn a Hugging Face folder into one GGUF file",
    "quantize": "Make a smaller GGUF from a larger one",
    "imatrix": "Measure on a text which weights matter",
    "bundle": "Join text model, media file and drafter into one file",
    "split": "Write the parts of one file as standard files",
    "pack": "Put the weights of a file in the order that gemmule reads fastest",
    "unpack": "Put them back in the order that other programs read",
    "verify": "Check every byte of a model file",
    "show": "What is inside a GGUF file, and does it fit in memory here",
    "tokenize": "Count or print the tokens of a text and of files",
    "bench": "Measure speed, memory and quality of model files, and compare",
    "demo": "Try gemmule on the small model of the [demo] extra",
    "doctor": "Versions, instruction sets, memory, and a self check",
}
_EXAMPLES = """\
gemmule: run Gemma models from one GGUF file, on this machine

  gemmule demo                                       try the small demo model
  gemmule convert ./gemma-4-12b-it -q Q4_K_M         make one file of a checkpoint
  gemmule run model.gguf "What is this?" cat.jpg     ask about a text, pictures, sounds
  gemmule show model.gguf                            what is inside, and does it fit

gemmule --help lists all commands."""


class _LazyGroup(click.Group):
    """A group that knows its commands by name and imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(importlib.import_module(f"gemmule.cli.{cmd_name}"), f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in _COMMANDS:
            import difflib

            near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "gemmule --help lists the commands"
            raise click.UsageError(f"there is no command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # click itself would print an empty line
            ctx.exit(INTERRUPTED)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from gemmule._version import __version__

        click.echo(f"gemmule {__version__}")
        ctx.exit()


@click.group(
    cls=_LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of an error.")
@click.option("-q", "--quiet", is_flag=True, help="Nothing but errors on stderr.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
@click.pass_context
def root(ctx: click.Context, verbose: bool, quiet: bool) -> None:
    """Run Gemma models from one GGUF file, on this machine."""
    settings.verbose, settings.quiet = verbose, quiet
    if ctx.invoked_subcommand is None:
        click.echo(_EXAMPLES)


def run_command_line(arguments: list[str]) -> int:
    """Runs one command and returns its exit code; every error is one line on stderr."""
    settings.verbose = settings.quiet = False
    settings.kept = None
    _open_missing_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(
                errors="replace"
            )  # a terminal that cannot show a character must not end the answer
    try:
        code = root.main(arguments, prog_name="gemmule", standalone_mode=False, auto_envvar_prefix="GEMMULE")
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        # The reader is gone. Point stdout away so that the interpreter's last flush stays quiet too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except SystemExit as stopped:  # click's own answer to a closed pipe is exit 1
        closed = type(sys.stdout).__name__.endswith("PacifyFlushWrapper")
        return 141 if closed else stopped.code if isinstance(stopped.code, int) else 1
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except Exception as error:
        if interrupted() and isinstance(error, ImportError | SystemError):
            return INTERRUPTED
        if settings.verbose:
            traceback.print_exc()
        print(f"gemmule: {message_of(error)}", file=sys.stderr)
        return exit_code_of(error)


def _open_missing_streams() -> None:
    """A stream the caller closed is None; writing to nowhere is better than failing, or than writing into the
    next file that gets its number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
