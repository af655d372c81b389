"""One object of a config.json: checked values by key, and a memory of which keys were read.

Keys known to have no effect on the numbers are in one list here; any other key that nobody read is reported,
or refused where it might change what the model computes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemmule._errors import FormatError, UnsupportedError

__all__ = ["ACTIVATION", "MAX_WIDTH", "Section", "finish_rope", "short"]

ACTIVATION = "gelu_pytorch_tanh"
MAX_WIDTH = 1 << 20

# Keys that say something about training, saving or the Python classes, never about the numbers.
_HARMLESS = frozenset(
    [
        "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_experts_implementation",
        "_name_or_path", "add_cross_attention", "architectures", "attention_dropout",
        "attention_invalid_logits_value", "bad_words_ids", "begin_suppress_tokens", "bos_token_id",
        "chunk_size_feed_forward", "cross_attention_hidden_size", "decoder_start_token_id",
        "diversity_penalty", "do_sample", "dtype", "early_stopping", "encoder_no_repeat_ngram_size",
        "eos_token_id", "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id",
        "forced_eos_token_id", "gradient_clipping", "hidden_dropout", "id2label", "initializer_range",
        "is_decoder", "is_encoder_decoder", "label2id", "length_penalty", "max_length", "min_length",
        "model_type", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences",
        "output_attentions", "output_hidden_states", "output_scores", "pad_token_id", "prefix",
        "problem_type", "pruned_heads", "remove_invalid_values", "repetition_penalty", "return_dict",
        "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params",
        "temperature", "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p",
        "torch_dtype", "torchscript", "transformers_version", "typical_p", "unsloth_fixed",
        "unsloth_version", "use_bfloat16", "use_cache",
    ]
)  # fmt: skip


class Section:
    """One object of the config; remembers which keys were read."""

    def __init__(self, path: Path, name: str, values: dict[str, Any]) -> None:
        self.path = path
        self.name = name
        self.values = values
        self.used: set[str] = set()

    def label(self, key: str) -> str:
        return f"{self.path}: {self.name}.{key}" if self.name else f"{self.path}: {key}"

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` where the key is absent or null."""
        self.used.add(key)
        value = self.values.get(key)
        return default if value is None else value

    def refuse(self, key: str, why: str) -> UnsupportedError:
        return UnsupportedError(f"{self.label(key)} is {short(self.values.get(key))}; {why}.")

    def bad(self, key: str, wanted: str) -> FormatError:
        return FormatError(f"{self.label(key)} should be {wanted}, it is {short(self.values.get(key))}.")

    def count(self, key: str, default: int | None = None, *, low: int = 1, high: int = MAX_WIDTH) -> int:
        value = self.get(key, default)
        if value is None:
            raise FormatError(f"{self.label(key)} is missing.")
        if type(value) is not int or not low <= value <= high:
            raise self.bad(key, f"a whole number from {low} to {high}")
        return value

    def number(self, key: str, default: float, *, low: float, high: float) -> float:
        value = self.get(key, default)
        if type(value) not in (int, float) or not low <= value <= high:
            raise self.bad(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if type(value) is not bool:
            raise self.bad(key, "true or false")
        return value

    def only(self, key: str, allowed: Sequence[Any], why: str) -> Any:
        """A value that must be one of `allowed`; the first is the default."""
        value = self.get(key, allowed[0])
        if not any(type(value) is type(a) and value == a for a in allowed) and not (
            type(value) in (int, float) and any(type(a) in (int, float) and value == a for a in allowed)
        ):
            raise self.refuse(key, why)
        return value

    def part(self, key: str) -> "Section | None":
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.bad(key, "an object")
        return Section(self.path, f"{self.name}.{key}" if self.name else key, value)

    def unknown(self, *, strict: bool) -> list[str]:
        """Warnings for the keys nobody read; with `strict` a set one is an error."""
        warnings = []
        for key, value in self.values.items():
            if key in self.used or key in _HARMLESS:
                continue
            if strict and value:
                raise self.refuse(key, "this key is not known, so the model might compute something else")
            if value is not None:
                warnings.append(f"{self.label(key)} = {short(value)} is not known and ignored.")
        return warnings


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def finish_rope(rope: Section) -> None:
    for key, value in rope.values.items():
        if key not in rope.used and value is not None:
            raise rope.refuse(key, "this rotary setting is not supported")
