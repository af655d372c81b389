"""`gemmule tokenize`: the tokens of a text."""

import json

import click

from gemmule.cli._common import find_model, piped_text, split_model, verbosity_options

__all__ = ["tokenize_command"]


@click.command("tokenize")
@click.argument("words", nargs=-1, metavar="[MODEL] [TEXT]")
@click.option("-m", "--model", envvar="GEMMULE_MODEL", help="The model file; then the argument is the text.")
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
    ids: bool,
    count: bool,
    as_json: bool,
    bos: bool,
) -> None:
    """The tokens of TEXT, or of what is piped in, in the vocabulary of MODEL.

    Without -m the first argument is the model if it names a file, else it is the text for $GEMMULE_MODEL.
    """
    from gemmule._inspect import open_header
    from gemmule._tokenizer import Tokenizer

    if sum((ids, count, as_json)) > 1:
        raise click.UsageError("choose one of --ids, --count and --json")
    given = ctx.get_parameter_source("model") == click.core.ParameterSource.COMMANDLINE
    name, rest = split_model(list(words), model, given)
    if len(rest) > 1:
        raise click.UsageError("the text must be one argument; put it in quotes")
    tokenizer = Tokenizer(open_header(find_model(name)))
    text = piped_text(wait=rest == ["-"]) if rest in ([], ["-"]) else rest[0]
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
