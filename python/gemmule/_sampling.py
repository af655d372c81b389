"""Sampling settings: None means the default stored in the file, else the one Gemma was tuned with.

Defaults: temperature 1.0, top_k 64, top_p 0.95 (file keys general.sampling.temp, .top_k, .top_p, .min_p).
temperature 0 is greedy; top_k 0 and top_p 1 switch those filters off.
"""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from gemmule._checks import real, whole

__all__ = ["SamplingParams"]

_FILE_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
}
_DEFAULTS: dict[str, float] = {"temperature": 1.0, "top_k": 64, "top_p": 0.95, "min_p": 0.0}


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Resolved and validated sampling settings of one reply."""

    temperature: float = 1.0
    top_k: int = 64
    top_p: float = 0.95
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            "temperature": _within("temperature", self.temperature, 0.0, 100.0),
            "top_k": whole("top_k", self.top_k, 0, 2**31 - 1),
            "top_p": _within("top_p", self.top_p, 0.0, 1.0, open_low=True),
            "min_p": _within("min_p", self.min_p, 0.0, 1.0),
            "repeat_penalty": _within("repeat_penalty", self.repeat_penalty, 0.0, 100.0, open_low=True),
            "presence_penalty": _within("presence_penalty", self.presence_penalty, -100.0, 100.0),
            "frequency_penalty": _within("frequency_penalty", self.frequency_penalty, -100.0, 100.0),
            "logit_bias": _biases(self.logit_bias),
            "seed": whole("seed", self.seed, 0, 2**64 - 1),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all settings."""
        return tuple(entry.name for entry in fields(cls))

    @classmethod
    def resolve(
        cls,
        file_defaults: Mapping[str, float],
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repeat_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
    ) -> "SamplingParams":
        """Fills what is None: from the file, then from Gemma's defaults; a missing seed is drawn (63
        bits).
        """
        defaults = {**_DEFAULTS, **file_defaults}
        return cls(
            temperature=defaults["temperature"] if temperature is None else temperature,
            top_k=int(defaults["top_k"]) if top_k is None else top_k,
            top_p=defaults["top_p"] if top_p is None else top_p,
            min_p=defaults["min_p"] if min_p is None else min_p,
            repeat_penalty=1.0 if repeat_penalty is None else repeat_penalty,
            presence_penalty=0.0 if presence_penalty is None else presence_penalty,
            frequency_penalty=0.0 if frequency_penalty is None else frequency_penalty,
            logit_bias={} if logit_bias is None else logit_bias,
            seed=secrets.randbits(63) if seed is None else seed,
        )

    @staticmethod
    def file_defaults(metadata: Mapping[str, Any]) -> dict[str, float]:
        """Picks the sampling defaults out of a file's metadata. A value of the wrong kind is ignored, not
        trusted.
        """
        found: dict[str, float] = {}
        for name, key in _FILE_KEYS.items():
            value = metadata.get(key)
            if not isinstance(value, int | float) or isinstance(value, bool):
                continue
            try:
                SamplingParams(**{name: int(value) if name == "top_k" else float(value)})  # type: ignore[arg-type]
            except ValueError:
                continue
            # Stored as f32: 0.95 reads back as 0.949999988..., which nobody wrote.
            found[name] = value if isinstance(value, int) else float(f"{value:.7g}")
        return found

    def engine_options(self) -> dict[str, Any]:
        """The keyword arguments of the engine's sampler."""
        return {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repeat_penalty": self.repeat_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": dict(self.logit_bias),
            "seed": self.seed,
        }


def _within(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> float:
    number = real(name, value)
    # Written so that nan fails too.
    if not ((low < number if open_low else low <= number) and number <= high):
        raise ValueError(
            f"{name} must be {'above' if open_low else 'at least'} {low:g} and at most {high:g}, not {value}"
        )
    return number


def _biases(value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise TypeError(f"logit_bias must be a mapping of token ids to numbers, not {value!r}")
    out = {}
    for token, bias in value.items():
        name = f"logit_bias of token {token}"
        # -inf is the usual way to forbid a token; +inf and nan have no meaning in a softmax.
        forbidden = real(name, bias) == -math.inf
        checked = -math.inf if forbidden else _within(name, bias, -1e30, 1e30)
        out[whole("a logit_bias token id", token, 0, 2**31 - 1)] = checked
    return out
