"""`gemmule run --dry-run`: what would be run, without running it. Media are decoded and counted, weights are
not read.
"""

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

import click

from gemmule.cli._common import context_line
from gemmule.cli._question import Question
from gemmule.cli._show import json_line
from gemmule.cli._terminal import printable

if TYPE_CHECKING:
    from gemmule import Model

__all__ = ["count_line", "show_plan"]


def show_plan(model: "Model", question: Question, *, as_json: bool) -> None:
    """Memory, context, token counts, and the prompt as the model will read it."""
    prompt = _rendered(model, question)
    count = prompt.count
    if as_json:
        document: dict[str, Any] = {
            "model": model.info.path,
            "plan": model.plan.to_dict(),
            "fits": len(prompt) <= model.n_ctx,
            "tokens": count.to_dict(),
            "prompt": prompt.text,
            "warnings": list(prompt.warnings),
        }
        click.echo(json_line(document))
        return
    plan = dataclasses.replace(model.plan, reason="")  # it names arguments of the library
    click.echo(f"{model.info}\n{model.n_threads} threads, {model.isa}\n{plan}")
    click.echo(context_line(f"   {model.plan.reason}"))
    room = model.n_ctx - int(count)
    left = f"{room} left for the answer" if room > 0 else f"{-room} too many; use a larger --ctx"
    click.echo(f"prompt     {count_line(count)}, {left}")
    for warning in prompt.warnings:
        click.echo(f"warning    {warning}")
    click.echo(f"\n{printable(prompt.text, sys.stdout)}")


def count_line(count: Any) -> str:
    """A token count with the share of each modality."""
    shares = [f"{n} {kind}" for kind in ("text", "image", "audio", "video") if (n := getattr(count, kind))]
    return f"{int(count)} tokens ({', '.join(shares)})"


def _rendered(model: "Model", question: Question) -> Any:
    from gemmule import Message

    if question.raw:
        from gemmule._prompt import build_prompt

        return build_prompt(model.tokenizer, model._media, list(question.content))
    return model.render([Message("user", question.content)], **question.chat)
