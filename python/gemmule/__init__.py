"""gemmule: run Gemma models from one GGUF file, on this machine.

    import gemmule

    with gemmule.Model("model.gguf") as model:
        print(model.chat("What is in this picture?", images="cat.jpg"))

Names are loaded when first used, so importing the package is quick and prints nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemmule._chat.async_stream import AsyncStream
    from gemmule._chat.messages import Message, ToolCall
    from gemmule._chat.tools import Tool
    from gemmule._convert.bundle import bundle, split, verify
    from gemmule._convert.convert import convert, quantize_file
    from gemmule._convert.imatrix import imatrix
    from gemmule._convert.pack import pack, unpack
    from gemmule._core import StopToken
    from gemmule._errors import (
        Cancelled,
        ContextLengthError,
        DeviceError,
        Error,
        FormatError,
        GrammarError,
        MediaError,
        MissingExtraError,
        ModelNotFoundError,
        NotEnoughMemoryError,
        UnsupportedError,
    )
    from gemmule._inspect import devices, estimate, inspect
    from gemmule._media.parts import Audio, Image, Video
    from gemmule._model import Model
    from gemmule._prompt import Prompt
    from gemmule._quant import dequantize, quantize
    from gemmule._sampling import SamplingParams
    from gemmule._session import Session
    from gemmule._stream import Stream
    from gemmule._tokenizer import Detokenizer, Tokenizer
    from gemmule._types import (
        ConvertReport,
        Delta,
        Device,
        MemoryPlan,
        ModelInfo,
        Reply,
        Score,
        Timings,
        TokenCount,
        TokenLogprob,
        Usage,
        VerifyReport,
    )
    from gemmule._version import __version__

__all__ = [
    "AsyncStream",
    "Audio",
    "Cancelled",
    "ContextLengthError",
    "ConvertReport",
    "Delta",
    "Detokenizer",
    "Device",
    "DeviceError",
    "Error",
    "FormatError",
    "GrammarError",
    "Image",
    "MediaError",
    "MemoryPlan",
    "Message",
    "MissingExtraError",
    "Model",
    "ModelInfo",
    "ModelNotFoundError",
    "NotEnoughMemoryError",
    "Prompt",
    "Reply",
    "SamplingParams",
    "Score",
    "Session",
    "StopToken",
    "Stream",
    "Timings",
    "TokenCount",
    "TokenLogprob",
    "Tokenizer",
    "Tool",
    "ToolCall",
    "UnsupportedError",
    "Usage",
    "VerifyReport",
    "Video",
    "__version__",
    "bundle",
    "convert",
    "dequantize",
    "devices",
    "estimate",
    "imatrix",
    "inspect",
    "pack",
    "quantize",
    "quantize_file",
    "split",
    "unpack",
    "verify",
]

_HOMES = {
    "_chat.async_stream": ("AsyncStream",),
    "_chat.messages": ("Message", "ToolCall"),
    "_chat.tools": ("Tool",),
    "_convert.bundle": ("bundle", "split", "verify"),
    "_convert.convert": ("convert", "quantize_file"),
    "_convert.imatrix": ("imatrix",),
    "_convert.pack": ("pack", "unpack"),
    "_core": ("StopToken",),
    "_errors": (
        "Cancelled",
        "ContextLengthError",
        "DeviceError",
        "Error",
        "FormatError",
        "GrammarError",
        "MediaError",
        "MissingExtraError",
        "ModelNotFoundError",
        "NotEnoughMemoryError",
        "UnsupportedError",
    ),
    "_inspect": ("devices", "estimate", "inspect"),
    "_media.parts": ("Audio", "Image", "Video"),
    "_model": ("Model",),
    "_prompt": ("Prompt",),
    "_quant": ("dequantize", "quantize"),
    "_sampling": ("SamplingParams",),
    "_session": ("Session",),
    "_stream": ("Stream",),
    "_tokenizer": ("Detokenizer", "Tokenizer"),
    "_types": (
        "ConvertReport",
        "Delta",
        "Device",
        "MemoryPlan",
        "ModelInfo",
        "Reply",
        "Score",
        "Timings",
        "TokenCount",
        "TokenLogprob",
        "Usage",
        "VerifyReport",
    ),
    "_version": ("__version__",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'gemmule' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gemmule.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
