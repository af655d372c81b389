"""`gemmule run`: one question with its files, one answer; without a question it becomes `gemmule chat`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemmule.cli._common import (
    context_line,
    engine_options,
    find_model,
    settings,
    split_model,
    verbosity_options,
)
from gemmule.cli._help import ShortHelpCommand, typed_arguments
from gemmule.cli._options import conversation_options
from gemmule.cli._output import check_output, write_output
from gemmule.cli._question import Question, question_of, split_words
from gemmule.cli._show import Printer, answer, json_line
from gemmule.cli._terminal import warn

if TYPE_CHECKING:
    from gemmule import Model, Reply

__all__ = ["answer", "open_model", "prefill_progress", "run_command"]

_SHOWN = (
    "model", "attach", "system", "max_tokens", "temperature", "think", "schema", "tools", "raw", "stats",
    "output", "as_json",
)  # fmt: skip


@click.command("run", cls=ShortHelpCommand, shown=_SHOWN)
@click.argument("words", nargs=-1, metavar="[MODEL] [PROMPT] [FILES]...")
@conversation_options
@click.option("--raw", is_flag=True, help="Continue the prompt as a text, without the chat template.")
@click.option("--stats", is_flag=True, help="Token counts, times and tokens per second on stderr.")
@click.option("--dry-run", is_flag=True, help="Show memory, tokens and the prompt as the model reads it.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Also write the answer there."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of the text.")
@click.option("--jsonl", "as_events", is_flag=True, help="One JSON event a line, as they happen.")
@engine_options
@verbosity_options
@click.pass_context
def run_command(
    ctx: click.Context, /, words: tuple[str, ...], model: str | None, output: Path | None, **options: Any
) -> None:
    """Ask MODEL about PROMPT and FILES (pictures, sounds, videos, texts); chat when there is nothing to ask.

    Piped text goes after the prompt. Without -m the first argument is the model if it names one, else it is
    the prompt for $GEMMULE_MODEL. A model without a chat template continues the prompt.
    """
    given = ctx.get_parameter_source("model") == click.core.ParameterSource.COMMANDLINE
    name, rest = split_model(list(words), model, given)
    prompt, files = split_words(rest)
    nothing = output is None and _asks_nothing(prompt, files, options)
    if nothing and sys.stdin.isatty() and sys.stdout.isatty():
        from gemmule.cli.chat import start_chat

        start_chat(ctx, name, options)
        return
    path = find_model(name)
    if options["as_json"] and options["as_events"]:
        raise click.UsageError("choose one of --json and --jsonl")
    if output is not None:
        check_output(output)
    question = question_of(path, prompt, files, options, typed_arguments(ctx))
    with open_model(path, options) as loaded:
        if options["dry_run"]:
            from gemmule.cli._dry_run import show_plan

            show_plan(loaded, question, as_json=options["as_json"])
            return
        reply, interrupted = _answered(loaded, question, options)
    if options["as_json"]:
        click.echo(json_line({"model": str(path), **reply.to_dict()}))
    if output is not None and (reply.text or not (interrupted or output.exists())):
        write_output(output, reply.text)
    if options["stats"]:
        end = f"finish {reply.finish_reason}, seed {reply.seed}"
        click.echo(f"{reply.usage}\n{reply.timings}; {end}", err=True)
    if interrupted:
        ctx.exit(130)


def _asks_nothing(prompt: str | None, files: list[str], options: dict[str, Any]) -> bool:
    names = ("attach", "image", "audio", "video", "file", "raw", "as_json", "as_events", "dry_run")
    return prompt is None and not files and not any(options[name] for name in names)


def open_model(path: Path, options: dict[str, Any]) -> "Model":
    """The model with the engine options; tells a terminal which context was chosen."""
    from gemmule import Model

    size: Any = options["n_ctx"]  # the option's type allows "auto", "max" and numbers only
    packed: Any = {"auto": "auto", "yes": True, "no": False}[options["packed"]]
    loaded = Model(
        path, n_ctx=size, n_threads=options["threads"], device=options["device"],
        kv_type=options["kv"], isa=options["isa"] or None, memory_limit=options["memory_limit"],
        packed=packed,
    )  # fmt: skip
    settings.kept = loaded
    if options["stats"]:
        click.echo(f"{loaded.info}", err=True)
    if options["stats"] or (sys.stderr.isatty() and not settings.quiet):
        click.echo(context_line(loaded.plan.reason), err=True)
    return loaded


def _answered(model: "Model", question: Question, options: dict[str, Any]) -> "tuple[Reply, bool]":
    """Asks and shows the answer; the last reply, and whether Ctrl-C cut it short."""
    form = "jsonl" if options["as_events"] else "silent" if options["as_json"] else "text"
    printer = Printer(form, thinking=not options["hide_thinking"])
    arguments = {**question.arguments, "progress": prefill_progress()}
    if question.raw:
        only_text = question.content[0] if len(question.content) == 1 else None
        prompt = only_text if isinstance(only_text, str) else list(question.content)
        with model.generate(prompt, stream=True, **arguments) as stream:
            reply, interrupted = printer.follow(stream)
    else:
        from gemmule import Message
        from gemmule.cli._asking import ask

        outcome = ask(
            lambda messages: model.chat(messages, stream=True, **question.chat, **arguments),
            [Message("user", question.content)],
            printer,
            question.toolbox,
        )
        reply, interrupted = outcome.reply, outcome.interrupted
    printer.end({"model": model.info.path, **reply.to_dict()})
    if not settings.quiet:
        for warning in reply.warnings:
            warn(f"warning: {warning}")
    return reply, interrupted


def prefill_progress() -> Callable[[int, int], None] | None:
    """Reports long prompts on a terminal; nothing elsewhere."""
    if settings.quiet or not sys.stderr.isatty():
        return None

    def report(done: int, total: int) -> None:
        if total > 256:
            end = "\r\033[K" if done == total else ""
            sys.stderr.write(f"\rreading the prompt: {done} of {total} tokens{end}")
            sys.stderr.flush()

    return report
