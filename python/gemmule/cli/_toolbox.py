"""Tools of the command line: the functions of a Python file, called only with the user's consent.

The file is the user's own program and is run to find its functions; a model can only name one of them.
Without a terminal to ask on and without --yes, a call is refused, and the model is told so.
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from gemmule.cli._terminal import note, printable, warn

if TYPE_CHECKING:
    from gemmule import Message, ToolCall

__all__ = ["Toolbox", "describe", "failed", "load_tools"]

_SHORT = 200


class Toolbox:
    """Functions offered to the model. Each call is asked about, unless `always`; `tell` hears of it."""

    def __init__(
        self,
        functions: list[Callable[..., Any]],
        *,
        always: bool = False,
        tell: Callable[[str], None] = note,
    ) -> None:
        from gemmule._chat.tools import tools_of

        self.functions = functions
        self.tools = tools_of(functions)  # says now which function cannot be offered
        self.always = always
        self._tell = tell

    def __str__(self) -> str:
        return ", ".join(tool.name for tool in self.tools)

    def run(self, call: "ToolCall") -> "Message":
        """Makes a call; refusals and failures are results too, so that the model knows."""
        from gemmule._chat.act import answer_calls

        (message,) = answer_calls([call], self.tools, self._allowed)
        self._tell(f"{_shortened(describe(call))} -> {_shortened(message.text)}")
        return message

    def _allowed(self, call: "ToolCall") -> bool:
        if self.always:
            return True
        shown = describe(call)
        if not (sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()):
            warn(f"refused to call {shown}: there is no terminal to ask on; --yes allows every call")
            return False
        question = printable(f"call {shown}? [y]es, [n]o, [a]lways: ", sys.stderr)
        print(question, end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline().strip().lower()
        self.always = answer in ("a", "always")
        return self.always or answer in ("y", "yes")


def load_tools(name: str, *, always: bool = False) -> Toolbox:
    """The public functions that a Python file defines itself; its `__all__` narrows the choice."""
    path = Path(name).expanduser()
    if not path.is_file():
        raise click.UsageError(f"--tools: there is no file {name}")
    module = _loaded(path)
    wanted = getattr(module, "__all__", None)
    functions: list[Callable[..., Any]] = [
        value
        for key, value in vars(module).items()
        if inspect.isfunction(value)
        and (key in wanted if wanted is not None else value.__module__ == module.__name__ and key[0] != "_")
    ]
    if not functions:
        raise click.UsageError(f"--tools: {name} defines no public function")
    return Toolbox(functions, always=always)


def _loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_gemmule_tools_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise click.UsageError(f"--tools: {path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # annotations are looked up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise click.UsageError(f"--tools: {path}: {type(error).__name__}: {error}") from None
    return module


def describe(call: "ToolCall") -> str:
    """A call as Python would write it, on one line."""
    arguments = ", ".join(f"{key}={value!r}" for key, value in call.arguments.items())
    return " ".join(f"{call.name}({arguments})".split())


def failed(call: "ToolCall", why: str) -> "Message":
    """A result that says why there is none."""
    from gemmule import Message

    return Message("tool", (f"error: {why}",), tool_call_id=call.id, name=call.name)


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}..."
