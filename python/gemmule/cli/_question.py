"""One question of `gemmule run`: the message, and the library's arguments that go with it.

Everything that can be wrong with it is found here, before a large file is loaded.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemmule.cli._attach import Attachment, content_of, piped
from gemmule.cli._common import settings
from gemmule.cli._options import (
    attachments_of,
    draft_of,
    sampling_of,
    system_text,
    thinking_of,
    toolbox_of,
    truncation_of,
    wishes_of,
)
from gemmule.cli._structure import structure_of
from gemmule.cli._terminal import note

if TYPE_CHECKING:
    from gemmule.cli._toolbox import Toolbox

__all__ = ["Question", "question_of", "split_words"]

_ATTACHED = ("attach", "image", "audio", "video", "file")


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """`content` are the parts of the message, `arguments` those of generate and chat, `chat` those of chat
    alone. `raw`: the content is continued without the chat template.
    """

    content: tuple[Any, ...]
    arguments: dict[str, Any]
    chat: dict[str, Any]
    toolbox: "Toolbox | None"
    raw: bool


def split_words(words: list[str]) -> tuple[str | None, list[str]]:
    """The prompt and the files among the arguments. Files exist and come after the prompt; a first word that
    can only be a file, such as cat.jpg, is one.
    """
    files = [word for i, word in enumerate(words) if i > 0 or _is_plainly_a_file(word)]
    prompts = [word for i, word in enumerate(words) if i == 0 and word not in files]
    if not prompts:  # run model.gguf cat.jpg "What is this?"
        missing = [word for word in files if not _exists(word)]
        if len(missing) == 1:
            files.remove(missing[0])
            prompts = missing
    for word in files:
        if not _exists(word):
            raise click.UsageError(
                f"there is no file {word!r}; a prompt must be one argument, so put it in quotes"
            )
    return (prompts[0] if prompts else None), files


def question_of(
    path: Path, prompt: str | None, files: list[str], options: dict[str, Any], typed: list[str]
) -> Question:
    """The question for the model file `path`."""
    wishes = wishes_of(options)
    arguments = {**sampling_of(options), **draft_of(options), **truncation_of(options)}
    arguments |= structure_of(options["schema"], options["regex"], options["choices"], options["grammar"])
    chat: dict[str, Any] = {"system": system_text(options["system"]), "think": thinking_of(options)}
    toolbox = toolbox_of(options)
    if toolbox is not None:
        chat["tools"] = toolbox.functions
    attachments = attachments_of(files, options, typed, wishes)
    text, more = "", list[Attachment]()
    if "-" not in files and not any("-" in options[name] for name in _ATTACHED):
        text, more = piped(wishes, wait=prompt == "-")
    prompt = "" if prompt in (None, "-") else prompt
    content = content_of([*attachments, *more], prompt or "", text)
    if not content:
        raise click.UsageError("there is no prompt; give one as an argument or pipe it in")
    raw = options["raw"] or not _has_template(path)
    wanted = next((name for name, value in chat.items() if value), None)
    if raw and wanted is not None:
        why = "--raw excludes it" if options["raw"] else f"{path} has none"
        raise click.UsageError(f"--{wanted} needs a chat template, but {why}")
    if raw and not options["raw"] and settings.verbose:
        note(f"{path} has no chat template; it continues the prompt as a text")
    return Question(content, arguments, {} if raw else chat, toolbox, raw)


def _has_template(path: Path) -> bool:
    from gemmule._inspect import open_header

    return "tokenizer.chat_template" in open_header(path).keys()  # noqa: SIM118


def _exists(word: str) -> bool:
    try:
        return word == "-" or Path(word).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # longer than a name can be, or a zero in it
        return False


def _is_plainly_a_file(word: str) -> bool:
    if not ("." in word or "/" in word) or not _exists(word):
        return False
    return Path(word).expanduser().is_file()
