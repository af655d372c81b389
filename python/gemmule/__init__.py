"""gemmule: run Gemma models from one GGUF file, on this machine.

    import gemmule

    with gemmule.Model("model.gguf") as model:
        print(model.generate("The capital of France is", max_tokens=16))

Names are loaded when first used, so importing the package is quick and prints nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from gemmule._model import Model
    from gemmule._quant import dequantize, quantize
    from gemmule._sampling import SamplingParams
    from gemmule._session import Session
    from gemmule._stream import Stream
    from gemmule._tokenizer import Detokenizer, Tokenizer
    from gemmule._types import (
        Delta,
        Device,
        MemoryPlan,
        ModelInfo,
        Reply,
        Score,
        Timings,
        TokenLogprob,
        Usage,
    )
    from gemmule._version import __version__

__all__ = [
    "Cancelled",
    "ContextLengthError",
    "Delta",
    "Detokenizer",
    "Device",
    "DeviceError",
    "Error",
    "FormatError",
    "GrammarError",
    "MediaError",
    "MemoryPlan",
    "MissingExtraError",
    "Model",
    "ModelInfo",
    "ModelNotFoundError",
    "NotEnoughMemoryError",
    "Reply",
    "SamplingParams",
    "Score",
    "Session",
    "StopToken",
    "Stream",
    "Timings",
    "TokenLogprob",
    "Tokenizer",
    "UnsupportedError",
    "Usage",
    "__version__",
    "dequantize",
    "devices",
    "estimate",
    "inspect",
    "quantize",
]

_HOMES = {
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
    "_model": ("Model",),
    "_quant": ("dequantize", "quantize"),
    "_sampling": ("SamplingParams",),
    "_session": ("Session",),
    "_stream": ("Stream",),
    "_tokenizer": ("Detokenizer", "Tokenizer"),
    "_types": (
        "Delta",
        "Device",
        "MemoryPlan",
        "ModelInfo",
        "Reply",
        "Score",
        "Timings",
        "TokenLogprob",
        "Usage",
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
