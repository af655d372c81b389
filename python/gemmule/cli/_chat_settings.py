"""What /set changes in a chat: sampling, system message, thinking, detail of pictures, context."""

import dataclasses
from collections.abc import Callable
from typing import Any

import click

from gemmule.cli._attach import MediaWishes
from gemmule.cli._common import context_size
from gemmule.cli._options import check_sampling, draft_option, system_text

__all__ = ["SETTINGS", "ChatSettings"]


@dataclasses.dataclass(slots=True)
class ChatSettings:
    """The state behind /set. `sampling` are arguments of chat; None in it means the file's own default."""

    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)
    think: bool | int = False
    hide_thinking: bool = False
    form: dict[str, Any] = dataclasses.field(default_factory=dict)
    wishes: MediaWishes = dataclasses.field(default_factory=MediaWishes)
    system: str | None = None
    n_ctx: int | None = None
    truncation: dict[str, Any] = dataclasses.field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """The arguments of a chat call."""
        return {**self.sampling, **self.form, **self.truncation, "think": self.think}

    def change(self, name: str, text: str) -> str:
        """Sets one value from what was typed; "default" takes it back. What it is now, for the user."""
        if name not in SETTINGS:
            raise click.UsageError(f"there is no setting {name!r}; there are {', '.join(SETTINGS)}")
        value = None if text.lower() in ("default", "none") else text
        SETTINGS[name](self, name, value)
        return f"{name} is {self.shown(name)}"

    def shown(self, name: str) -> str:
        """The value of a setting as it is typed."""
        if name == "think":
            on_off = "on" if self.think else "off"
            return on_off if isinstance(self.think, bool) else str(self.think)
        if name == "image_tokens":
            value: Any = self.wishes.image_tokens
        elif name == "truncation":
            value = self.truncation.get(name, "error")
        elif name == "draft":
            value = self.sampling.get(name, "auto") or "off"
        elif name in ("system", "ctx"):
            value = self.system if name == "system" else self.n_ctx
        else:
            value = self.sampling.get(name)
        return "default" if value in (None, ()) else str(value)


def _number(settings: ChatSettings, name: str, text: str | None) -> None:
    kind: Callable[[str], Any] = float if name in ("temperature", "top_p", "min_p", "repeat_penalty") else int
    try:
        value = None if text is None else kind(text)
    except ValueError:
        raise click.UsageError(f"{name} must be a number, not {text!r}") from None
    if name == "max_tokens" and value is not None and value < 1:
        raise click.UsageError("max_tokens must be 1 or more")
    try:
        check_sampling({name: value})
    except click.UsageError as error:
        raise click.UsageError(error.message.removeprefix("--")) from None
    settings.sampling[name] = value


def _think(settings: ChatSettings, _: str, text: str | None) -> None:
    words = {"on": True, "off": False, "true": True, "false": False, None: False}
    word = text.lower() if text is not None else None
    if word in words:
        settings.think = words[word]
    elif word is not None and word.isdigit() and 0 < len(word) < 10 and int(word) > 0:
        settings.think = int(word)
    else:
        raise click.UsageError("think must be on, off, or a number of tokens")


def _image_tokens(settings: ChatSettings, _: str, text: str | None) -> None:
    if text not in (None, "70", "140", "280", "560", "1120"):
        raise click.UsageError("image_tokens must be 70, 140, 280, 560 or 1120")
    tokens = None if text is None else int(text)
    settings.wishes = dataclasses.replace(settings.wishes, image_tokens=tokens)


def _system(settings: ChatSettings, _: str, text: str | None) -> None:
    settings.system = system_text(text)


def _ctx(settings: ChatSettings, _: str, text: str | None) -> None:
    size = None if text is None else context_size(text)
    if isinstance(size, str) or size == 0:
        raise click.UsageError("ctx must be a number of tokens such as 4096 or 4k")
    settings.n_ctx = size


def _draft(settings: ChatSettings, name: str, text: str | None) -> None:
    try:
        settings.sampling[name] = "auto" if text is None else draft_option(text)
    except click.BadParameter as error:
        raise click.UsageError(f"draft: {error.message}") from None


def _truncation(settings: ChatSettings, name: str, text: str | None) -> None:
    if text not in (None, "error", "oldest", "middle"):
        raise click.UsageError("truncation must be error, oldest or middle")
    settings.truncation = {} if text in (None, "error") else {name: text}


SETTINGS: dict[str, Callable[[ChatSettings, str, str | None], None]] = {
    "temperature": _number,
    "top_k": _number,
    "top_p": _number,
    "min_p": _number,
    "repeat_penalty": _number,
    "seed": _number,
    "max_tokens": _number,
    "system": _system,
    "think": _think,
    "image_tokens": _image_tokens,
    "ctx": _ctx,
    "truncation": _truncation,
    "draft": _draft,
}
