"""`gemmule chat`: a conversation in the terminal, or one whose messages are piped in."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemmule.cli._common import engine_options, find_model, split_model, verbosity_options
from gemmule.cli._help import ShortHelpCommand, typed_arguments
from gemmule.cli._options import (
    attachments_of,
    conversation_options,
    draft_of,
    sampling_of,
    system_text,
    thinking_of,
    toolbox_of,
    truncation_of,
    wishes_of,
)
from gemmule.cli._structure import structure_of

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer

__all__ = ["chat_command", "check_template", "start_chat"]

_SHOWN = (
    "model", "attach", "system", "max_tokens", "temperature", "think", "schema", "tools", "history", "load",
)  # fmt: skip


@click.command("chat", cls=ShortHelpCommand, shown=_SHOWN)
@click.argument("words", nargs=-1, metavar="[MODEL] [FILES]...")
@conversation_options
@click.option("--load", metavar="FILE", help="Go on with a conversation that /save wrote.")
@click.option("--history/--no-history", default=True, help="Remember what was typed.  [remember]")
@click.option("--stats", is_flag=True, help="Show the model, the context chosen, and what each answer took.")
@engine_options
@verbosity_options
@click.pass_context
def chat_command(ctx: click.Context, /, words: tuple[str, ...], model: str | None, **options: Any) -> None:
    """Talk with MODEL. FILES go with the first message. /help lists the commands of the chat.

    Without a terminal each line of standard input is a message, and the answers go to standard output.
    """
    given = ctx.get_parameter_source("model") == click.core.ParameterSource.COMMANDLINE
    name, files = split_model(list(words), model, given)
    start_chat(ctx, name, options, files)


def start_chat(
    ctx: click.Context, name: str | None, options: dict[str, Any], files: "list[str] | None" = None
) -> None:
    """The chat of `gemmule chat` and of `gemmule run` without a prompt; ends the command."""
    from gemmule.cli._chat_settings import ChatSettings
    from gemmule.cli._conversation import Conversation
    from gemmule.cli._lines import open_lines
    from gemmule.cli._repl import Repl
    from gemmule.cli.run import open_model, prefill_progress

    path = find_model(name)
    wishes = wishes_of(options)
    choices = ChatSettings(
        sampling={**sampling_of(options), **draft_of(options)},
        think=thinking_of(options),
        hide_thinking=options["hide_thinking"],
        form=structure_of(options["schema"], options["regex"], options["choices"], options["grammar"]),
        wishes=wishes,
        system=system_text(options["system"]),
        truncation=truncation_of(options),
    )
    toolbox = toolbox_of(options)
    pending = attachments_of(files or [], options, typed_arguments(ctx), wishes)
    saved = options.get("load")
    conversation = Conversation.load(Path(saved), wishes) if saved else None
    check_template(path)
    lines = open_lines(options.get("history", True), _completer)
    repl = Repl(
        lambda chosen: open_model(chosen, options), path, lines, choices,
        toolbox=toolbox, pending=pending, progress=prefill_progress(),
        stats=options["stats"],
    )  # fmt: skip
    if conversation is not None:
        repl.conversation = conversation
        repl.choices.system = conversation.system if choices.system is None else choices.system
    ctx.exit(repl.run())


def check_template(path: Path) -> None:
    """Refuses a model that has no template for conversations and for which the package knows none."""
    from gemmule._inspect import info_of, open_header

    header = open_header(path)
    known = info_of(header).architecture == "gemma4"
    if not known and "tokenizer.chat_template" not in header.keys():  # noqa: SIM118
        raise click.UsageError(f"{path} has no chat template; gemmule run continues texts with it")


def _completer() -> "Completer":
    from gemmule.cli._completer import ChatCompleter
    from gemmule.cli._slash import completions

    return ChatCompleter(completions())
