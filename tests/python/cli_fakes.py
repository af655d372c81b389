"""A model that answers by a script, for tests of the chat that need no weights, and the chat run with it.

`python -m cli_fakes ARGUMENTS` is the command line with this model: it answers "you said: ..." word by word,
slowly when asked to "count", calls the tool `add` when asked to "add", and thinks when asked to.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from gemmule import ContextLengthError, Message, ToolCall
from gemmule._types import Delta, MemoryPlan, ModelInfo, Reply, Timings, Usage

PAUSE = 0.05


class FakeStream:
    def __init__(self, pieces: Iterator[Delta], owner: FakeSession, n_prompt: int) -> None:
        self._pieces, self._owner, self._n_prompt = pieces, owner, n_prompt
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[ToolCall] = []
        self._finish = ""

    def __iter__(self) -> Iterator[Delta]:
        for piece in self._pieces:
            self._texts.append(str(piece))
            self._thoughts.append(piece.thinking)
            self._calls += [piece.call] if piece.call is not None else []
            yield piece
        self._finish = self._finish or ("tool_calls" if self._calls else "stop")

    def __enter__(self) -> FakeStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._finish = self._finish or "cancelled"
        self._pieces = iter(())

    @property
    def reply(self) -> Reply:
        text, thinking, calls = "".join(self._texts), "".join(self._thoughts), tuple(self._calls)
        self._owner.n_tokens = self._n_prompt + len(self._texts)
        return Reply(
            text=text,
            tokens=tuple(range(len(self._texts))),
            finish_reason=self._finish,
            seed=1,
            usage=Usage(self._n_prompt, 0, len(self._texts), self._owner.n_tokens),
            timings=Timings(),
            thinking=thinking,
            tool_calls=calls,
        )


class FakeSession:
    def __init__(self, model: FakeModel, n_ctx: int) -> None:
        self.model, self.n_ctx, self.n_tokens = model, n_ctx, 0
        self.messages: tuple[Message, ...] = ()
        self.seen: list[tuple[tuple[Message, ...], dict[str, Any]]] = []

    def chat(self, *, stream: bool, **options: Any) -> FakeStream:
        assert stream
        self.model.seen.append((self.messages, options))
        n_prompt = self.model.count_tokens(self.messages)
        if n_prompt > self.n_ctx:
            raise ContextLengthError("", n_prompt, self.n_ctx)
        return FakeStream(answer(self.messages, options), self, n_prompt)

    def close(self) -> None:
        pass


class FakeModel:
    """`seen` has the messages and options of every request."""

    def __init__(self, n_ctx: int = 200) -> None:
        self.n_ctx = n_ctx
        self.seen: list[tuple[tuple[Message, ...], dict[str, Any]]] = []
        self.info = ModelInfo("fake.gguf", "gemma4", "fake", 1, "F32", 1, n_ctx, 1, 1, 1)
        self.plan = MemoryPlan(1, 1, 1, 3, 10, n_ctx, n_ctx, "f16")

    def session(self, *, n_ctx: int | None = None) -> FakeSession:
        return FakeSession(self, n_ctx or self.n_ctx)

    def chat(self, messages: Any, *, stream: bool, **options: Any) -> FakeStream:
        session = self.session()
        session.messages = tuple(messages)
        return session.chat(stream=stream, **options)

    def count_tokens(self, messages: Any) -> int:
        return sum(len(message.text.split()) + 4 + 10 * len(message.media) for message in messages)

    def close(self) -> None:
        pass

    def __enter__(self) -> FakeModel:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


def answer(messages: tuple[Message, ...], options: dict[str, Any]) -> Iterator[Delta]:
    last = messages[-1]
    if last.role == "tool":
        yield Delta(f"the tool said {last.text}")
        return
    if options.get("think"):
        yield Delta(thinking="let me ")
        yield Delta(thinking="see")
    if "fail" in last.text:
        raise ValueError("it failed")
    if options.get("tools") and "add" in last.text:
        yield Delta(call=ToolCall("add", {"a": 2, "b": 3}, "call_0"))
        return
    if "count" in last.text:
        for i in range(100):
            yield Delta(f"{i} ")
            time.sleep(PAUSE)
        return
    yield Delta("you said: ")
    for word in last.text.split():
        yield Delta(f"{word} ")
    for part in last.media:
        yield Delta(f"[{type(part).__name__}] ")


def main() -> int:
    from gemmule import cli
    from gemmule.cli import chat, run

    model: Any = FakeModel()
    run.open_model = lambda path, options: model
    chat.check_template = lambda path: None
    return cli.run_command_line(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
