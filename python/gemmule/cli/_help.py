"""Commands with more options than one wants to read: --help shows the chosen ones, --help-all every one.

The command also keeps its arguments as they were typed, for those who need their order across options.
"""

from collections.abc import Sequence
from typing import Any

import click

__all__ = ["ShortHelpCommand", "typed_arguments"]

_ALL = "gemmule.help_all"
_TYPED = "gemmule.typed"


class ShortHelpCommand(click.Command):
    """A command whose --help lists the parameters named in `shown`."""

    def __init__(self, *args: Any, shown: Sequence[str], **options: Any) -> None:
        super().__init__(*args, **options)
        self.shown = frozenset(shown)
        self.params.append(
            click.Option(
                ["--help-all"], is_flag=True, is_eager=True, expose_value=False, callback=_show_all,
                help="Show every option.",
            )
        )  # fmt: skip

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_TYPED] = list(args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        everything = ctx.meta.get(_ALL, False)
        rows = [
            row
            for parameter in self.get_params(ctx)
            if (everything or parameter.name in self.shown or parameter.name in ("help", "help_all"))
            and (row := parameter.get_help_record(ctx)) is not None
        ]
        with formatter.section("Options"):
            formatter.write_dl(rows)


def _show_all(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        ctx.meta[_ALL] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()


def typed_arguments(ctx: click.Context) -> list[str]:
    """The command's arguments in the order they were typed."""
    typed: list[str] = ctx.meta.get(_TYPED, [])
    return typed
