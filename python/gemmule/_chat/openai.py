"""OpenAI's chat completion as a plain function: its request in, its response out.

https://platform.openai.com/docs/api-reference/chat. Beyond it: `reasoning_content` (as llama.cpp and vLLM
name it), `timings`, and the sampling options of `generate`. What is not done is refused.
"""

import secrets
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gemmule._types import Delta, Reply, TokenLogprob

if TYPE_CHECKING:
    from gemmule._model import Model
    from gemmule._stream import Stream

__all__ = ["chat_options", "completion_of", "create_chat_completion"]

# Taken as they are; then fields that say nothing about the answer; then those with one possible value.
_SAME = (
    "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty",
    "seed", "stop", "tools", "tool_choice", "parallel_tool_calls", "think", "image_tokens", "regex",
    "choices", "grammar", "schema", "draft", "truncation", "cancel", "progress",
)  # fmt: skip
_IGNORED = ("model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
_FIXED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "modalities": (["text"],),
    "audio": (),
    "verbosity": ("medium",),
}
_OWN = (
    "messages", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "logit_bias",
    "response_format", "reasoning_effort", "chat_template_kwargs", "stream", "stream_options",
)  # fmt: skip
_EFFORT_TOKENS = {"none": False, "minimal": 256, "low": 1024, "medium": 4096, "high": True, "xhigh": True}


def create_chat_completion(
    model: "Model", request: Mapping[str, Any]
) -> dict[str, Any] | Iterator[dict[str, Any]]:
    """See Model.create_chat_completion."""
    options = chat_options(request)
    name = request.get("model") or model.info.name or model.info.architecture
    if request.get("stream"):
        stream_options = _mapping(request, "stream_options")
        running = model.chat(request["messages"], stream=True, **options)
        return _chunks(running, name, bool(stream_options.get("include_usage")))
    return completion_of(model.chat(request["messages"], **options), name)


def chat_options(request: Mapping[str, Any]) -> dict[str, Any]:
    """The options of Model.chat that an OpenAI request asks for. Throws ValueError naming the field."""
    if request.get("messages") is None:
        raise ValueError("messages is missing")
    _mapping(request, "stream_options")
    for name, value in request.items():
        if name not in (*_SAME, *_IGNORED, *_OWN) and value is not None:
            if name not in _FIXED:
                raise ValueError(f"{name} is not a field of a chat completion that gemmule knows")
            if value not in _FIXED[name]:
                raise ValueError(f"{name}={value!r} is not supported; leave it out")
    options = {name: request[name] for name in _SAME if request.get(name) is not None}
    limit = request.get("max_completion_tokens")
    limit = request.get("max_tokens") if limit is None else limit
    if limit is not None:
        options["max_tokens"] = limit
    if request.get("logprobs"):
        options["logprobs"] = request.get("top_logprobs") or 0
    elif request.get("top_logprobs"):
        raise ValueError("top_logprobs needs logprobs=true")
    if request.get("logit_bias"):
        options["logit_bias"] = {_token_id(token): bias for token, bias in request["logit_bias"].items()}
    if request.get("response_format") is not None:
        options.update(_shape(request["response_format"]))
    if "think" not in options:
        options.update(_thinking(request))
    return options


def _mapping(request: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = request.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{name} must be an object, not {value!r}")
    return value or {}


def _token_id(token: Any) -> int:
    try:
        return int(token)
    except (TypeError, ValueError):
        raise ValueError(f"logit_bias has the key {token!r}; its keys are token ids") from None


def _shape(wanted: Any) -> dict[str, Any]:
    """response_format, also with the schema directly inside it, as llama.cpp takes it."""
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"schema": wanted.get("schema") or {"type": "object"}}
    if kind == "json_schema":
        inner = wanted.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, Mapping) else wanted.get("schema")
        if isinstance(schema, Mapping):
            return {"schema": dict(schema)}
        raise ValueError("response_format.json_schema.schema is missing")
    raise ValueError(f"response_format.type is {kind!r}; use 'text', 'json_object' or 'json_schema'")


def _thinking(request: Mapping[str, Any]) -> dict[str, Any]:
    effort = request.get("reasoning_effort")
    if effort is not None:
        if effort not in _EFFORT_TOKENS:
            raise ValueError(f"reasoning_effort is {effort!r}; use {', '.join(_EFFORT_TOKENS)}")
        return {"think": _EFFORT_TOKENS[effort]}
    template = _mapping(request, "chat_template_kwargs")
    return {"think": bool(template["enable_thinking"])} if "enable_thinking" in template else {}


def completion_of(reply: Reply, name: str) -> dict[str, Any]:
    """A finished reply as a response."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": reply.text or (None if reply.tool_calls else ""),
    }
    if reply.thinking:
        message["reasoning_content"] = reply.thinking
    if reply.tool_calls:
        message["tool_calls"] = [call.to_dict() for call in reply.tool_calls]
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": _finish(reply),
        "logprobs": _logprobs(reply.logprobs),
    }
    return {
        **_head("chat.completion", name, *_identity()),
        "choices": [choice],
        "usage": _usage(reply),
        "timings": reply.timings.to_dict(),
        **({"warnings": list(reply.warnings)} if reply.warnings else {}),
    }


def _chunks(stream: "Stream", name: str, with_usage: bool) -> Iterator[dict[str, Any]]:
    identity = _identity()

    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return {**_head("chat.completion.chunk", name, *identity), "choices": [choice]}

    n_calls = 0
    with stream:
        yield chunk({"role": "assistant", "content": ""})
        for piece in stream:
            yield chunk(_delta(piece, n_calls))
            n_calls += piece.kind == "tool_call"
        reply = stream.reply
        last = chunk({}, _finish(reply))
        last["choices"][0]["logprobs"] = _logprobs(reply.logprobs)
        yield {**last, "timings": reply.timings.to_dict()}
        if with_usage:
            usage = {"choices": [], "usage": _usage(reply)}
            yield {**_head("chat.completion.chunk", name, *identity), **usage}


def _delta(piece: Delta, index: int) -> dict[str, Any]:
    if piece.kind == "thinking":
        return {"reasoning_content": piece.thinking}
    if piece.call is not None:
        return {"tool_calls": [{"index": index, **piece.call.to_dict()}]}
    return {"content": piece.text}


def _identity() -> tuple[str, int]:
    return f"chatcmpl-{secrets.token_hex(12)}", int(time.time())


def _head(kind: str, name: str, identifier: str, created: int) -> dict[str, Any]:
    return {"id": identifier, "object": kind, "created": created, "model": name}


def _finish(reply: Reply) -> str:
    return "stop" if reply.finish_reason == "cancelled" else reply.finish_reason


def _usage(reply: Reply) -> dict[str, Any]:
    usage = reply.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "image_tokens": usage.image_tokens,
            "audio_tokens": usage.audio_tokens,
            "video_tokens": usage.video_tokens,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _logprobs(values: tuple[TokenLogprob, ...] | None) -> dict[str, Any] | None:
    if values is None:
        return None

    def entry(text: str, logprob: float) -> dict[str, Any]:
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    return {
        "content": [
            {
                **entry(value.text, value.logprob),
                "top_logprobs": [entry(text, logprob) for _, text, logprob in value.top],
            }
            for value in values
        ]
    }
