"""Evaluations of lm-eval (the Language Model Evaluation Harness) on a model file, in this process.

    lm_eval --model gemmule --model_args path=model.gguf --tasks hellaswag --device cpu

lm-eval finds the class by its entry point (group lm_eval.models); with a version that has none, importing
this module registers the name "gemmule".
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gemmule._errors import ContextLengthError, MissingExtraError

if TYPE_CHECKING:
    from gemmule import Model

__all__ = ["GemmuleLM", "greedy_score", "likelihood"]

try:
    _api: Any = importlib.import_module("lm_eval.api.model")
    _registry: Any = importlib.import_module("lm_eval.api.registry")
except ImportError:
    raise MissingExtraError("evaluations need one more package: pip install 'gemmule[eval]'") from None


def likelihood(model: Model, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
    """log P(continuation | context), and whether it is what greedy decoding would write. Of what does not fit
    the model's context, the beginning of `context` is left out.
    """
    room = model.n_ctx - len(continuation)
    if room < 1:
        raise ContextLengthError(
            f"a continuation of {len(continuation)} tokens leaves no room for its context in {model.n_ctx}; "
            "give a larger n_ctx",
            len(continuation) + 1,
            model.n_ctx,
        )
    ids = np.array([*context[-room:], *continuation], np.int32)
    targets = np.full(len(ids) - 1, -1, np.int32)
    targets[len(ids) - 1 - len(continuation) :] = ids[len(ids) - len(continuation) :]
    session = model._engine().session(n_ctx=len(ids), kv_type=model.plan.kv_type, snapshot_limit=0)
    values, top_ids, _ = session.append_score(ids[:-1], targets, top=1)
    scored = targets >= 0
    return float(values[scored].sum(dtype=np.float64)), bool((top_ids[scored, 0] == targets[scored]).all())


def greedy_score(model: Model, context: str, continuation: str) -> tuple[float, bool]:
    """The same for texts. Spaces at the end of the context belong to the continuation, as lm-eval has it."""
    n_spaces = len(context) - len(context.rstrip())
    if n_spaces:
        context, continuation = context[:-n_spaces], context[-n_spaces:] + continuation
    encode = model.tokenizer.encode
    before, whole = encode(context), encode(context + continuation)
    if not before:
        before = [model.tokenizer.bos_id or 0]
        whole = [*before, *whole]
    n = len(before)
    return likelihood(model, whole[:n], whole[n:]) if len(whole) > n else (0.0, True)


class GemmuleLM(_api.LM):  # type: ignore[misc]
    """path and the options of gemmule.Model, as lm-eval's --model_args gives them."""

    def __init__(self, path: str, n_ctx: int = 4096, max_gen_toks: int = 256, **options: Any) -> None:
        super().__init__()
        from gemmule import Model

        known = {key: options[key] for key in ("n_threads", "kv_type", "isa", "packed") if key in options}
        self._model = Model(path, n_ctx=int(n_ctx), mmproj=False, **known)
        self._max_tokens = int(max_gen_toks)

    def loglikelihood(self, requests: Iterable[Any]) -> list[tuple[float, bool]]:
        """(log-probability, greedy) of each (context, continuation)."""
        return [greedy_score(self._model, *request.args) for request in requests]

    def loglikelihood_rolling(self, requests: Iterable[Any]) -> list[float]:
        """The log-probability of each text, in windows that begin with the last token of the one before."""
        return [self._rolling(request.args[0]) for request in requests]

    def _rolling(self, text: str) -> float:
        ids = self._model.tokenizer.encode(text, add_bos=False)
        before = [self._model.tokenizer.bos_id or 0]
        step, total = self._model.n_ctx - 1, 0.0
        for first in range(0, len(ids), step):
            piece = ids[first : first + step]
            total += likelihood(self._model, before, piece)[0]
            before = piece[-1:]
        return total

    def generate_until(self, requests: Iterable[Any]) -> list[str]:
        """Greedy, or as the task says, up to one of its stop texts."""
        texts = []
        for request in requests:
            prompt, options = request.args
            until = options.get("until") or []
            reply = self._model.generate(
                prompt,
                max_tokens=int(options.get("max_gen_toks", self._max_tokens)),
                temperature=float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0,
                stop=[until] if isinstance(until, str) else list(until),
                truncation="oldest",
            )
            texts.append(reply.text)
        return texts


if "gemmule" not in getattr(_registry, "MODEL_REGISTRY", {}):
    _registry.register_model("gemmule")(GemmuleLM)
