"""`gemmule run`: continue a text."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemmule.cli._common import (
    context_line,
    engine_options,
    find_model,
    piped_text,
    settings,
    split_model,
    verbosity_options,
)

if TYPE_CHECKING:
    from gemmule import Reply, Stream

__all__ = ["answer", "run_command"]


@click.command("run")
@click.argument("words", nargs=-1, metavar="[MODEL] [PROMPT]")
@click.option(
    "-m", "--model", envvar="GEMMULE_MODEL", help="The model file; then all arguments are the prompt."
)
@click.option("-n", "--max-tokens", type=click.IntRange(0), help="Stop after this many tokens.  [until done]")
@click.option(
    "--temperature", type=float, help="0 always takes the likeliest token.  [from the file, else 1.0]"
)
@click.option(
    "--top-k", type=click.IntRange(0), help="Choose among this many tokens; 0 is off.  [file, else 64]"
)
@click.option("--top-p", type=float, help="Choose within this share of probability.  [file, else 0.95]")
@click.option("--min-p", type=float, help="Drop tokens below this share of the likeliest.  [file, else 0]")
@click.option(
    "--seed", type=click.IntRange(0), help="Makes the answer repeatable.  [random, shown by --stats]"
)
@click.option("--stop", multiple=True, help="End before this text (repeatable).")
@click.option("--stats", is_flag=True, help="Times and tokens per second on stderr.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of the text.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Also write the answer there."
)
@engine_options
@verbosity_options
@click.pass_context
def run_command(
    ctx: click.Context,
    /,
    words: tuple[str, ...],
    model: str | None,
    stats: bool,
    as_json: bool,
    output: Path | None,
    n_ctx: int | str,
    threads: int | None,
    kv: str,
    isa: str | None,
    device: str,
    **options: Any,
) -> None:
    """Continue PROMPT with MODEL.

    The text is continued as it is: no chat template is applied. Piped text goes after the prompt.
    Without -m the first argument is the model if it names a file, else it is the prompt for $GEMMULE_MODEL.
    """
    given = ctx.get_parameter_source("model") == click.core.ParameterSource.COMMANDLINE
    name, rest = split_model(list(words), model, given)
    path = find_model(name)
    # Whatever can be wrong with the request is found before a large file is loaded.
    _check_options(options)
    if output is not None:
        _check_output(output)
    prompt = _prompt(rest)
    from gemmule import Model

    size: Any = n_ctx  # the option's type allows "auto", "max" and numbers only
    with Model(path, n_ctx=size, n_threads=threads, device=device, kv_type=kv, isa=isa or None) as loaded:
        settings.kept = loaded
        if stats:
            click.echo(f"{loaded.info}", err=True)
        if stats or (sys.stderr.isatty() and not settings.quiet):
            click.echo(context_line(loaded.plan.reason), err=True)
        with loaded.generate(prompt, stream=True, progress=_prefill_progress(), **options) as stream:
            reply, interrupted = answer(stream, show=not as_json)
    if as_json:
        click.echo(json.dumps({"model": str(path), **reply.to_dict()}, ensure_ascii=False))
    if output is not None and (reply.text or not (interrupted or output.exists())):
        _write(output, reply.text)
    if stats:
        click.echo(f"{reply.timings}; finish {reply.finish_reason}, seed {reply.seed}", err=True)
    if interrupted:
        ctx.exit(130)


def _prompt(words: list[str]) -> str:
    """The argument, then what is piped in; the argument "-" stands for the pipe alone."""
    if len(words) > 1:
        raise click.UsageError("the prompt must be one argument; put it in quotes")
    dash = words == ["-"]
    prompt = "\n\n".join(text for text in (*([] if dash else words), piped_text(wait=dash)) if text)
    if not prompt:
        raise click.UsageError("there is no prompt; give one as an argument or pipe it in")
    return prompt


def _check_options(options: dict[str, Any]) -> None:
    """Refuses bad sampling values by the name of their option."""
    from gemmule._sampling import SamplingParams

    for name in ("temperature", "top_k", "top_p", "min_p", "seed"):
        try:
            SamplingParams.resolve({}, **{name: options[name]})
        except ValueError as error:
            raise click.UsageError(str(error).replace(name, f"--{name.replace('_', '-')}", 1)) from None
    if "" in options["stop"]:
        raise click.UsageError("--stop must not be empty")


def _check_output(output: Path) -> None:
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


def _write(output: Path, text: str) -> None:
    """The whole text or the old file, never a part; with the permissions a plain write would give."""
    from gemmule._cache import atomic_write

    target = output.resolve()
    if target.exists() and not target.is_file():
        target.write_text(text, encoding="utf-8")
        return
    if target.exists():
        mode = target.stat().st_mode & 0o777
    else:
        mask = os.umask(0)
        os.umask(mask)
        mode = 0o666 & ~mask
    with atomic_write(target) as out:
        out.write(text.encode("utf-8", "replace"))
        Path(out.name).chmod(mode)


def answer(stream: "Stream", *, show: bool) -> "tuple[Reply, bool]":
    """Shows the pieces as they come; the reply, and whether Ctrl-C cut it short."""
    interrupted = False
    try:
        for piece in stream:
            if show:
                sys.stdout.write(piece)
                sys.stdout.flush()
    except KeyboardInterrupt:
        interrupted = True
        stream.close()  # it may have come between two steps, with the generation still open
    reply = stream.reply
    if show and not (interrupted and not reply.text):
        sys.stdout.write("" if reply.text.endswith("\n") else "\n")
        sys.stdout.flush()
    return reply, interrupted


def _prefill_progress() -> Callable[[int, int], None] | None:
    """Reports long prompts on a terminal; nothing elsewhere."""
    if settings.quiet or not sys.stderr.isatty():
        return None

    def report(done: int, total: int) -> None:
        if total > 256:
            end = "\r\033[K" if done == total else ""
            sys.stderr.write(f"\rreading the prompt: {done} of {total} tokens{end}")
            sys.stderr.flush()

    return report
