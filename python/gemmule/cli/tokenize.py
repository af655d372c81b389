"""`gemmule tokenize`: the tokens of a text, of a chat message, of media files."""

import json
from pathlib import Path
from typing import Any

import click

from gemmule.cli._attach import MediaWishes, attach, content_of
from gemmule.cli._common import find_model, piped_text, split_model, verbosity_options

__all__ = ["tokenize_command"]


@click.command("tokenize")
@click.argument("words", nargs=-1, metavar="[MODEL] [TEXT] [FILES]...")
@click.option("-m", "--model", envvar="GEMMULE_MODEL", help="The model file; then no argument names it.")
@click.option("--chat", is_flag=True, help="Render it as a chat message first.")
@click.option(
    "--image-tokens",
    type=click.Choice(["70", "140", "280", "560", "1120"]),
    help="Detail of pictures: at most this many tokens each.  [from the file, else 280]",
)
@click.option("--ids", is_flag=True, help="Ids only, on one line.")
@click.option("--count", is_flag=True, help="The number of tokens only.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.option(
    "--bos/--no-bos", default=True, show_default=True, help="Put BOS in front if the model uses it."
)
@verbosity_options
@click.pass_context
def tokenize_command(
    ctx: click.Context,
    /,
    words: tuple[str, ...],
    model: str | None,
    chat: bool,
    image_tokens: str | None,
    ids: bool,
    count: bool,
    as_json: bool,
    bos: bool,
) -> None:  # fmt: skip
    """The tokens of TEXT, or of what is piped in, and of FILES, in the vocabulary of MODEL.

    Without -m the first argument is the model if it names one, else it is the text for $GEMMULE_MODEL.
    With FILES the tokens are counted by kind: text, image, audio, video.
    """
    from gemmule.cli._question import split_words

    if sum((ids, count, as_json)) > 1:
        raise click.UsageError("choose one of --ids, --count and --json")
    given = ctx.get_parameter_source("model") == click.core.ParameterSource.COMMANDLINE
    name, rest = split_model(list(words), model, given)
    text, files = split_words(rest)
    path = find_model(name)
    if text in (None, "-") and not files:
        text = piped_text(wait=text == "-")
    if files or chat:
        wishes = MediaWishes(image_tokens=None if image_tokens is None else int(image_tokens))
        content = content_of([attach(file, None, wishes) for file in files], text or "")
        tokens, counts, warnings = _rendered(path, content, chat, bos)
        _show_counts(tokens, counts, warnings, ids=ids, count=count, as_json=as_json)
        return
    _show_text(path, text or "", bos, ids=ids, count=count, as_json=as_json)


def _rendered(
    path: Path, content: tuple[Any, ...], chat: bool, bos: bool
) -> tuple[tuple[int, ...], Any, tuple[str, ...]]:
    """The ids, their counts by kind, and what was done to media."""
    from gemmule import Message, Model

    if not content:
        raise click.UsageError("there is no text; give one as an argument or pipe it in")
    with Model(path, n_ctx=1) as model:
        if chat:
            prompt = model.render([Message("user", content)])
        else:
            from gemmule._prompt import build_prompt

            prompt = build_prompt(model.tokenizer, model._media, list(content), add_bos=bos)
    return prompt.tokens, prompt.count, prompt.warnings


def _show_counts(
    tokens: tuple[int, ...], counts: Any, warnings: tuple[str, ...], *, ids: bool, count: bool, as_json: bool
) -> None:
    from gemmule.cli._dry_run import count_line
    from gemmule.cli._terminal import warn

    for warning in warnings:
        warn(f"warning: {warning}")
    if count:
        click.echo(int(counts))
    elif ids:
        click.echo(" ".join(str(token) for token in tokens))
    elif as_json:
        click.echo(json.dumps({"n_tokens": len(tokens), "count": counts.to_dict(), "ids": list(tokens)}))
    else:
        click.echo(count_line(counts))


def _show_text(path: Path, text: str, bos: bool, *, ids: bool, count: bool, as_json: bool) -> None:
    """A text alone needs the header of the file only."""
    from gemmule._inspect import open_header
    from gemmule._tokenizer import Tokenizer

    tokenizer = Tokenizer(open_header(path))
    tokens = tokenizer.encode(text, add_bos=bos)
    if count:
        click.echo(len(tokens))
    elif ids:
        click.echo(" ".join(str(token) for token in tokens))
    elif as_json:
        rows = [{"id": token, "text": tokenizer.decode([token])} for token in tokens]
        click.echo(json.dumps({"n_tokens": len(tokens), "tokens": rows}, ensure_ascii=False))
    else:
        for token in tokens:
            click.echo(f"{token:>8}  {tokenizer.decode([token])!r}")
