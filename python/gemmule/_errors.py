"""The exception tree. Every class is also the fitting builtin, so plain Python handlers keep working.

Error (Exception)
├── ModelNotFoundError    FileNotFoundError   the named file is not there
├── FormatError           ValueError          the file is damaged or contradicts itself
├── UnsupportedError      ValueError          valid, but this build does not do it
├── ContextLengthError    ValueError          more tokens than the context holds (.n_prompt, .n_ctx)
├── NotEnoughMemoryError  MemoryError         the plan does not fit (.need, .have in bytes, .n_ctx that fits)
├── DeviceError           RuntimeError        no such device or instruction set
├── MediaError            ValueError          an image, sound or video cannot be read
├── GrammarError          ValueError          a schema, regex or grammar cannot be used
├── Cancelled                                 stopped by the caller
└── MissingExtraError     ImportError         an optional package is not installed

The C++ module imports this file and raises these very classes, so it must stay free of imports.
"""

__all__ = [
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
]


class Error(Exception):
    """Base of everything gemmule raises on purpose."""


class ModelNotFoundError(Error, FileNotFoundError):
    """The model file does not exist or cannot be opened."""


class FormatError(Error, ValueError):
    """The file is not a GGUF, is damaged, or its parts contradict each other."""


class UnsupportedError(Error, ValueError):
    """The request or file is valid but not handled by this version."""


class ContextLengthError(Error, ValueError):
    """More tokens than the context holds. `n_prompt` tokens were asked for, `n_ctx` fit."""

    n_prompt: int
    n_ctx: int

    def __init__(self, message: str = "", n_prompt: int = 0, n_ctx: int = 0) -> None:
        super().__init__(message or f"the prompt has {n_prompt} tokens but the context holds {n_ctx}")
        self.n_prompt = n_prompt
        self.n_ctx = n_ctx

    def __reduce__(self) -> tuple[type, tuple[str, int, int]]:
        return type(self), (str(self), self.n_prompt, self.n_ctx)


class NotEnoughMemoryError(Error, MemoryError):
    """The memory plan does not fit: `need` bytes, `have` are available, and `n_ctx` is the largest context
    that fits. A 0 means that the number is not known, or that no context fits.
    """

    need: int
    have: int
    n_ctx: int

    def __init__(self, message: str = "", need: int = 0, have: int = 0, n_ctx: int = 0) -> None:
        super().__init__(message or f"{need} bytes are needed and {have} are available")
        self.need = need
        self.have = have
        self.n_ctx = n_ctx

    def __reduce__(self) -> tuple[type, tuple[str, int, int, int]]:
        return type(self), (str(self), self.need, self.have, self.n_ctx)


class DeviceError(Error, RuntimeError):
    """The device or instruction set asked for is not there."""


class MediaError(Error, ValueError):
    """An image, sound or video cannot be read."""


class GrammarError(Error, ValueError):
    """A schema, regular expression or grammar cannot be compiled."""


class Cancelled(Error):
    """The caller stopped the computation."""


class MissingExtraError(Error, ImportError):
    """An optional package is not installed; the message holds the install command."""
