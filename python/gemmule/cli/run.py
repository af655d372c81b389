"""`gemmule run`: continue a text."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemmule.cli._common import engine_options, find_model, piped_text, verbose_option

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
@verbose_option
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
    **options: Any,
) -> None:
    """Continue PROMPT with MODEL.

    The text is continued as it is: no chat template is applied. Piped text goes after the prompt.
    Without -m the first argument is the model if it names a file, else it is the prompt for $GEMMULE_MODEL.
    """
    from gemmule import Model

    given = ctx.get_parameter_source("model") == click.core.ParameterSource.COMMANDLINE
    name, rest = _split(list(words), model, given)
    path = find_model(name)
    if len(rest) > 1:
        raise click.UsageError("the prompt must be one argument; put it in quotes")
    prompt = "\n\n".join(text for text in (*rest, piped_text()) if text)
    if not prompt:
        raise click.UsageError("there is no prompt; give one as an argument or pipe it in")
    size: Any = n_ctx  # the option's type allows "auto", "max" and numbers only
    with Model(path, n_ctx=size, n_threads=threads, kv_type=kv, isa=isa or None) as loaded:
        if stats:
            click.echo(f"{loaded.info}\ncontext {loaded.plan.reason}", err=True)
        options["stop"] = list(options["stop"])
        with loaded.generate(prompt, stream=True, progress=_prefill_progress(), **options) as stream:
            reply, interrupted = answer(stream, show=not as_json)
    if as_json:
        click.echo(json.dumps({"model": str(path), **reply.to_dict()}, ensure_ascii=False))
    if output is not None:
        output.write_text(reply.text, encoding="utf-8")
    if stats:
        click.echo(f"{reply.timings}; finish {reply.finish_reason}, seed {reply.seed}", err=True)
    if interrupted:
        ctx.exit(130)


def _split(words: list[str], model: str | None, given: bool) -> tuple[str | None, list[str]]:
    """Model name and prompt words."""
    names_a_model = bool(words) and (words[0].endswith(".gguf") or Path(words[0]).is_file())
    if given or (model and not names_a_model):
        return model, words
    if words and (names_a_model or len(words) > 1 or model is None):
        return words[0], words[1:]
    return model, words


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
    if not sys.stderr.isatty():
        return None

    def report(done: int, total: int) -> None:
        if total > 256:
            end = "\r\033[K" if done == total else ""
            sys.stderr.write(f"\rreading the prompt: {done} of {total} tokens{end}")
            sys.stderr.flush()

    return report
