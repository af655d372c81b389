"""Options that `run` and `chat` share, in groups: sampling, the message, its form, media."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from gemmule.cli._attach import Attachment, MediaWishes, attach_all
from gemmule.cli._common import Command

if TYPE_CHECKING:
    from gemmule.cli._toolbox import Toolbox

__all__ = [
    "attachments_of",
    "check_sampling",
    "conversation_options",
    "draft_of",
    "draft_option",
    "sampling_of",
    "system_text",
    "thinking_of",
    "toolbox_of",
    "truncation_of",
    "wishes_of",
]

_BUDGETS = (70, 140, 280, 560, 1120)
_SAMPLING = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed", "stop")


def _all(options: Sequence[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def draft_option(text: str) -> bool | int | str:
    """What --draft and /set draft take, as the library takes it."""
    if text == "off":
        return False
    if text.isascii() and text.isdigit() and len(text) < 3 and int(text) <= 12:
        return int(text)
    if text not in ("auto", "mtp", "lookup"):
        raise click.BadParameter(f"{text!r} is not auto, mtp, lookup, off, or a number up to 12")
    return text


_sampling_options = _all([
    click.option("-n", "--max-tokens", type=click.IntRange(0), metavar="N",
                 help="Stop after this many tokens.  [until done]"),
    click.option("--temperature", type=float, metavar="F",
                 help="0 always takes the likeliest token.  [from the file, else 1.0]"),
    click.option("--top-k", type=click.IntRange(0), metavar="N",
                 help="Choose among this many tokens; 0 is off.  [file, else 64]"),
    click.option("--top-p", type=float, metavar="F",
                 help="Choose within this share of probability.  [file, else 0.95]"),
    click.option("--min-p", type=float, metavar="F",
                 help="Drop tokens below this share of the likeliest.  [file, else 0]"),
    click.option("--repeat-penalty", type=float, metavar="F",
                 help="Above 1: tokens used before become less likely.  [file, else 1.0]"),
    click.option("--seed", type=click.IntRange(0), metavar="N",
                 help="Makes the answer repeatable.  [random, shown by --stats]"),
    click.option("--stop", multiple=True, metavar="TEXT", help="End before this text (repeatable)."),
    click.option("--draft", type=draft_option, metavar="auto|mtp|lookup|off|N", default="auto",
                 show_default=True, envvar="GEMMULE_DRAFT",
                 help="Run expected tokens ahead, for speed; the answer stays the same."),
])  # fmt: skip

_attach_options = _all([
    click.option("-a", "--attach", multiple=True, metavar="FILE|-",
                 help="Add a picture, sound, video or text; - is standard input (repeatable)."),
    click.option("--image", multiple=True, metavar="FILE", help="The same, and it is a picture."),
    click.option("--audio", multiple=True, metavar="FILE", help="The same, and it is a sound."),
    click.option("--video", multiple=True, metavar="FILE", help="The same, and it is a video."),
    click.option("-f", "--file", multiple=True, metavar="FILE", help="The same, and it is a text."),
    click.option("--image-tokens", type=click.Choice([str(n) for n in _BUDGETS]),
                 help="Detail of pictures: at most this many tokens each.  [from the file, else 280]"),
    click.option("--video-frames", type=click.IntRange(1, 4096), metavar="N",
                 help="Frames taken from a video.  [from the file, else 32]"),
    click.option("--video-tokens", type=click.Choice([str(n) for n in _BUDGETS]),
                 help="At most this many tokens a frame.  [from the file, else 70]"),
    click.option("--video-sound/--no-video-sound", default=True, help="Listen to a video's sound.  [listen]"),
])  # fmt: skip

_chat_options = _all([
    click.option("-s", "--system", metavar="TEXT|@FILE", help="System message."),
    click.option("--think/--no-think", default=None,
                 help="Let the model think first; its thoughts go to stderr.  [no-think]"),
    click.option("--think-budget", type=click.IntRange(1), metavar="N",
                 help="Think, for at most this many tokens."),
    click.option("--hide-thinking", is_flag=True, help="Do not show the thoughts."),
    click.option("--truncation", type=click.Choice(["error", "oldest", "middle"]), default="error",
                 show_default=True, envvar="GEMMULE_TRUNCATION",
                 help="What to leave out when it does not fit: nothing, the oldest, or the middle."),
    click.option("--tools", metavar="FILE.py",
                 help="Offer the functions of this file; asks before each call."),
    click.option("--yes", is_flag=True, help="Make every tool call without asking."),
])  # fmt: skip

_form_options = _all([
    click.option("--schema", metavar="FILE|JSON|py:module.Class",
                 help="Answer in JSON of this schema."),
    click.option("--regex", metavar="REGEX", help="Answer in the form of this regular expression."),
    click.option("--choice", "choices", multiple=True, metavar="TEXT",
                 help="Answer one of the choices (repeatable)."),
    click.option("--grammar", metavar="FILE", help="Answer in the form of this Lark or GBNF grammar."),
])  # fmt: skip


# What `run` and `chat` have in common.
conversation_options = _all([
    click.option("-m", "--model", envvar="GEMMULE_MODEL", help="The model file; then no argument names it."),
    _attach_options,
    _chat_options,
    _sampling_options,
    _form_options,
])  # fmt: skip


def sampling_of(options: dict[str, Any]) -> dict[str, Any]:
    """The sampling arguments among a command's options, checked."""
    chosen = {name: options[name] for name in _SAMPLING}
    check_sampling(chosen)
    return chosen


def check_sampling(options: dict[str, Any]) -> None:
    """Refuses bad sampling values by the name of their option."""
    from gemmule._sampling import SamplingParams

    for name in ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed"):
        try:
            SamplingParams.resolve({}, **{name: options.get(name)})
        except ValueError as error:
            raise click.UsageError(str(error).replace(name, f"--{name.replace('_', '-')}", 1)) from None
    if "" in options.get("stop", ()):
        raise click.UsageError("--stop must not be empty")


def wishes_of(options: dict[str, Any]) -> MediaWishes:
    """How media are to be read."""

    def number(name: str) -> int | None:
        return None if options[name] is None else int(options[name])

    return MediaWishes(
        number("image_tokens"), number("video_frames"), number("video_tokens"), options["video_sound"]
    )


def attachments_of(
    files: Sequence[str], options: dict[str, Any], typed: Sequence[str], wishes: MediaWishes
) -> list[Attachment]:
    """All the files that were named, in the order typed."""
    forced = {kind or "": options[kind or "attach"] for kind in (None, "image", "audio", "video")}
    return attach_all(files, {**forced, "text": options["file"]}, typed, wishes)


def system_text(system: str | None) -> str | None:
    """The system message; @FILE is what is in that file."""
    if system is None or not system.startswith("@"):
        return system
    from gemmule.cli._attach import attach

    return str(attach(system[1:], "text").part).rstrip("\n")


def thinking_of(options: dict[str, Any]) -> bool | int:
    """The `think` argument: off, on, or a budget in tokens."""
    if options["think_budget"] is not None:
        if options["think"] is False:
            raise click.UsageError("--no-think and --think-budget exclude each other")
        budget: int = options["think_budget"]
        return budget
    return bool(options["think"])


def truncation_of(options: dict[str, Any]) -> dict[str, Any]:
    """The `truncation` argument, where it is not the default."""
    chosen = options["truncation"]
    return {} if chosen == "error" else {"truncation": chosen}


def draft_of(options: dict[str, Any]) -> dict[str, Any]:
    """The `draft` argument, where it is not the default."""
    return {} if options["draft"] == "auto" else {"draft": options["draft"]}


def toolbox_of(options: dict[str, Any]) -> "Toolbox | None":
    """The tools that were offered, if any."""
    if options["tools"] is None:
        if options["yes"]:
            raise click.UsageError("--yes goes with --tools")
        return None
    from gemmule.cli._toolbox import load_tools

    return load_tools(options["tools"], always=options["yes"])
