"""`gemmule demo`: the small model of the [demo] extra, three completions and their speed; with --media the
model that comes with the package, which sees and hears.
"""

import sys

import click

from gemmule.cli._common import settings, threads_option, verbosity_options

__all__ = ["demo_command", "peak_memory"]

_PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small house by the sea,",
    "Water boils when it is heated because",
)


@click.command("demo")
@click.option(
    "-n", "--max-tokens", type=click.IntRange(1), default=32, show_default=True, help="Tokens per text."
)
@click.option("--media", is_flag=True, help="The tiny model of this package: pictures, sounds, tools.")
@threads_option
@verbosity_options
@click.pass_context
def demo_command(ctx: click.Context, max_tokens: int, media: bool, threads: int | None) -> None:
    """Load the Gemma 3 270M weights of the [demo] extra and continue three texts. Nothing is downloaded.

    With --media a model of a few megabytes that is part of the package answers about pictures and sounds,
    thinks, calls a function and fills in a form.
    """
    if media:
        _show_media(ctx, threads)
        return
    from gemmule._demo_weights import demo_weights
    from gemmule._model import Model
    from gemmule._types import Timings, format_bytes
    from gemmule.cli.run import answer

    path = demo_weights()
    timings: list[Timings] = []
    with Model(path, n_ctx=4096, n_threads=threads) as model:
        settings.kept = model
        click.echo(f"{path}\n{model.info}\n{model.n_threads} threads, {model.isa}\n{model.plan}\n")
        for prompt in _PROMPTS:
            click.echo(f"> {prompt}")
            with model.generate(prompt, max_tokens=max_tokens, temperature=0, stream=True) as stream:
                reply, interrupted = answer(stream, show=True)
            if interrupted:
                ctx.exit(130)
            click.echo()
            timings.append(reply.timings)
        # The prompts above are too short to time; a longer one shows the speed of reading.
        text = " ".join(_PROMPTS) + " "
        longer = model.tokenizer.encode(text * 40)[:512]
        with model.generate(longer, max_tokens=0, stream=True) as stream:
            prefill = stream.reply.timings.prompt_per_second
    passes = sum(max(0, timing.predicted_n - 1) for timing in timings)
    seconds = sum(timing.predicted_ms for timing in timings) / 1e3
    decode = passes / seconds if seconds > 0 else 0.0
    click.echo(
        f"prefill {prefill:.1f} tokens/s ({len(longer)} tokens), "
        f"decode {decode:.1f} tokens/s ({passes} tokens)"
    )
    click.echo(f"peak memory {format_bytes(peak_memory())}")


def _show_media(ctx: click.Context, threads: int | None) -> None:
    from gemmule._model import Model
    from gemmule._types import format_bytes
    from gemmule.cli._demo_media import media_model, show_media

    path = media_model()
    with Model(path, n_threads=threads) as model:
        settings.kept = model
        click.echo(f"{path}\n{model.info}\n{model.n_threads} threads, {model.isa}")
        replies, interrupted = show_media(model, path.parent)
    if interrupted:
        ctx.exit(130)
    n_prompt = sum(reply.usage.prompt_tokens for reply in replies)
    n_answer = sum(reply.usage.completion_tokens for reply in replies)
    click.echo(f"\n{n_prompt} prompt tokens, {n_answer} answer tokens")
    click.echo(f"peak memory {format_bytes(peak_memory())}")


def peak_memory() -> int:
    """The most resident memory this process had, in bytes (mapped weights included)."""
    if sys.platform == "win32":
        import importlib

        return int(importlib.import_module("psutil").Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
