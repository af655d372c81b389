"""From a conversation and its options to one request: the rendered prompt, how the answer is read, and what
it must look like.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from gemmule._cancel import cancelled_by
from gemmule._checks import whole
from gemmule._errors import Cancelled, UnsupportedError
from gemmule._media.parts import Image
from gemmule._prompt import EMPTY, PreparedMedia, Prompt, PromptBuilder
from gemmule._request import ChatOptions, Dialogue, GenerateOptions, Request, make_request
from gemmule._truncate import answer_room, fit_turns, policy_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from gemmule import _core
    from gemmule._chat.constraint import Constraint
    from gemmule._chat.grammar import Grammar
    from gemmule._chat.messages import Message
    from gemmule._chat.parser import Markers
    from gemmule._chat.schema import SchemaSpec
    from gemmule._chat.template import ChatTemplate
    from gemmule._chat.tools import Tool
    from gemmule._model import Model

__all__ = ["chat_request", "conversation", "raw_request", "template_of"]

_TEMPLATE = "tokenizer.chat_template"
_SHAPES = ("schema", "regex", "choices", "grammar")
_FRAME = 6  # tokens that a template puts around a message


def template_of(file: "_core.GgufFile") -> "ChatTemplate | None":
    """The file's chat template; None when it has none and the built-in one of Gemma 4 is used.

    Throws UnsupportedError for a model that has no template and is no Gemma 4.
    """
    from gemmule._chat.template import ChatTemplate

    keys = set(file.keys())
    source = file.get(_TEMPLATE) if _TEMPLATE in keys else None
    if isinstance(source, str) and source.strip():
        return ChatTemplate(source, name=file.path)
    if file.get("general.architecture") != "gemma4":
        raise UnsupportedError(f"{file.path} has no chat template; use generate, which takes plain text")
    return None


def conversation(before: "tuple[Message, ...]", messages: Any, options: ChatOptions) -> "tuple[Message, ...]":
    """The messages so far and the new ones."""
    from gemmule._chat.messages import normalize

    system = options.get("system")
    if before and system is not None:
        raise ValueError("a session takes its system message when it is made: model.session(system=...)")
    images, audio, videos = options.get("images"), options.get("audio"), options.get("videos")
    empty = isinstance(messages, Sequence) and not len(messages)
    if empty and before and images is None and audio is None and videos is None:
        return before
    new = normalize(messages, system=system, images=images, audio=audio, videos=videos)
    tokens = options.get("image_tokens")
    if tokens is not None:
        tokens = whole("image_tokens", tokens, 1, 1 << 14)
        new = tuple(_seen_at(message, tokens) for message in new)
    return (*before, *new)


def _seen_at(message: "Message", tokens: int) -> "Message":
    """With the detail of its images settled, so that later turns see them as this one did."""
    content = tuple(
        dataclasses.replace(part, tokens=tokens) if isinstance(part, Image) and part.tokens is None else part
        for part in message.content
    )
    return dataclasses.replace(message, content=content)


def raw_request(model: "Model", rows: Prompt, options: GenerateOptions, dropped_tokens: int = 0) -> Request:
    """A continuation without template."""
    grammar, schema = _grammar(options)
    make: Callable[[], Constraint] | None = None
    if grammar is not None:
        from gemmule._chat.constraint import answer_constraint

        tokenizer = model.tokenizer
        make = partial(answer_constraint, grammar, tokenizer, eos_ids=tokenizer.eos_ids)
    return make_request(
        model, rows, options, schema=schema, make_constraint=make, dropped_tokens=dropped_tokens
    )


def chat_request(model: "Model", history: "Sequence[Message]", options: ChatOptions, n_ctx: int) -> Request:
    """One turn of a conversation, cut to fit into `n_ctx` where the options allow it. Of a request that was
    cancelled while its media were decoded, the prompt is empty.
    """
    from gemmule._chat.parser import Markers
    from gemmule._chat.tools import tools_of

    tokenizer = model.tokenizer
    markers = Markers.of(tokenizer.id_of)
    thinks, budget = _thinking(options.get("think", False))
    if thinks and markers.channel_close is None:
        raise UnsupportedError(f"{model.info.path} cannot think; leave out think")
    tools = tools_of(options.get("tools") or ())
    if tools and markers.call_open is None:
        raise UnsupportedError(f"{model.info.path} has no tokens for tool calls; leave out tools")
    reader = _Reader(model, tools, thinks)
    request = make_request(model, EMPTY, options)  # checks the options before anything is decoded
    try:
        with cancelled_by(options.get("cancel")):
            prompt, dropped_tokens = fit_turns(
                history,
                policy_of(options),
                n_ctx=n_ctx,
                n_answer=answer_room(request.max_tokens, n_ctx),
                build=reader.prompt,
                size_of=reader.size,
            )
    except Cancelled:
        prompt, dropped_tokens = EMPTY, 0
    grammar, schema = _grammar(options)
    return make_request(
        model,
        prompt,
        options,
        schema=schema,
        make_constraint=_constraint(model, markers, tools, grammar, options, thinks),
        dialogue=Dialogue(markers, tuple(tool.name for tool in tools), thinks, budget, reader.thinking_open),
        warnings=() if model._template is None else model._template.warnings,
        dropped_tokens=dropped_tokens,
    )


class _Reader:
    """Messages to rows of the model. Media are decoded once."""

    def __init__(self, model: "Model", tools: "tuple[Tool, ...]", thinks: bool) -> None:
        self._model = model
        self._tools = [tool.declaration() for tool in tools]
        self._thinks = thinks
        self._media = PreparedMedia(model._media)
        self.thinking_open = False  # whether the last prompt ends inside a thought

    def prompt(self, messages: "Sequence[Message]") -> Prompt:
        """The rendered conversation."""
        from gemmule._chat.pieces import Piece
        from gemmule._chat.render import render

        tokenizer = self._model.tokenizer
        rendered = render(
            messages,
            template=self._model._template,
            tools=self._tools,
            think=self._thinks,
            bos="" if tokenizer.bos_id is None else tokenizer.decode([tokenizer.bos_id]),
        )
        if len(rendered.media) != sum(len(message.media) for message in messages):
            raise UnsupportedError(
                f"the chat template of {self._model.info.path} leaves out images, sounds or videos; "
                "give them to generate, which needs no template"
            )
        self.thinking_open = rendered.thinking_open
        builder = PromptBuilder(tokenizer, self._media)
        for piece in rendered.pieces:
            if isinstance(piece, Piece):
                builder.text(piece.text, special=piece.special)
            else:
                builder.part(piece)
        return builder.build()

    def size(self, message: "Message") -> int:
        """About how many tokens a message takes; what its answer thought is not rendered again."""
        texts = [message.text, *(f"{call.name}{call.arguments}" for call in message.tool_calls)]
        n_media = sum(
            piece.source.n_tokens + 2
            for part in message.media
            for piece in self._media.of(part)[0]
            if not isinstance(piece, str)
        )
        return len(self._model.tokenizer.encode("\n".join(texts), add_bos=False)) + n_media + _FRAME


def _thinking(think: object) -> tuple[bool, int | None]:
    """Whether to think, and the most tokens of it."""
    if isinstance(think, bool):
        return think, None
    budget = whole("think", think, 0, 2**31)
    return budget > 0, budget


def _grammar(options: GenerateOptions) -> "tuple[Grammar | None, SchemaSpec | None]":
    """What the answer must look like."""
    if all(options.get(name) is None for name in _SHAPES):
        return None, None
    from gemmule._chat.grammar import grammar_of
    from gemmule._chat.schema import SchemaSpec

    schema = options.get("schema")
    spec = None if schema is None else SchemaSpec.of(schema)
    grammar = grammar_of(
        schema=None if spec is None else spec.json_schema,
        regex=options.get("regex"),
        choices=options.get("choices"),
        grammar=options.get("grammar"),
    )
    return grammar, spec


def _constraint(
    model: "Model",
    markers: "Markers",
    tools: "tuple[Tool, ...]",
    grammar: "Grammar | None",
    options: ChatOptions,
    thinks: bool,
) -> "Callable[[], Constraint] | None":
    """What makes the constraint of one run; compiled when the run begins."""
    tokenizer, choice = model.tokenizer, _choice(options.get("tool_choice"), tools)
    if tools:
        from gemmule._chat.constraint import tool_constraint

        parallel = options.get("parallel_tool_calls", True)
        return lambda: tool_constraint(
            tools, tokenizer, markers, choice=choice, parallel=parallel, thinking=thinks, answer=grammar
        )
    if grammar is None:
        return None
    from gemmule._chat.constraint import answer_constraint

    return lambda: answer_constraint(
        grammar,
        tokenizer,
        starts_after=markers.channel_close if thinks else None,
        starts_with=markers.channel_open,
        eos_ids=tokenizer.eos_ids,
    )


def _choice(choice: Any, tools: "tuple[Tool, ...]") -> str:
    """tool_choice as one word: auto, none, required or a tool's name. OpenAI's form with a dict is taken."""
    if choice is None:
        return "auto"
    if isinstance(choice, dict):
        function = choice.get("function")
        choice = function.get("name") if isinstance(function, dict) else choice.get("name")
    names = [tool.name for tool in tools]
    if not isinstance(choice, str) or choice not in ("auto", "none", "required", *names):
        raise ValueError(
            f"tool_choice is {choice!r}; use 'auto', 'none', 'required'"
            + (f" or one of {', '.join(names)}" if names else "; no tools were given")
        )
    if choice not in ("auto", "none") and not tools:
        raise ValueError(f"tool_choice={choice!r} needs tools")
    return choice
