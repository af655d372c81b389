"""`gemmule tokenize`: the tokens of a text."""

import json

import click

from gemmule.cli._common import find_model, piped_text, verbose_option

__all__ = ["tokenize_command"]


@click.command("tokenize")
@click.argument("model")
@click.argument("text", required=False)
@click.option("--ids", is_flag=True, help="Ids only, on one line.")
@click.option("--count", is_flag=True, help="The number of tokens only.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.option(
    "--bos/--no-bos", default=True, show_default=True, help="Put BOS in front if the model uses it."
)
@verbose_option
def tokenize_command(model: str, text: str | None, ids: bool, count: bool, as_json: bool, bos: bool) -> None:
    """The tokens of TEXT, or of what is piped in, in the vocabulary of MODEL."""
    from gemmule._inspect import open_header
    from gemmule._tokenizer import Tokenizer

    if sum((ids, count, as_json)) > 1:
        raise click.UsageError("choose one of --ids, --count and --json")
    tokenizer = Tokenizer(open_header(find_model(model)))
    tokens = tokenizer.encode(piped_text() if text is None else text, add_bos=bos)
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
