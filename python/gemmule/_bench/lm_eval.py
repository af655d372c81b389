"""Models of lm-eval (the Language Model Evaluation Harness), run in this process.

    gemmule bench eval model.gguf --tasks arc_easy,gsm8k
    lm_eval --model gemmule --model_args path=model.gguf --tasks arc_easy

The first works with every version of lm-eval; the second with those that know entry points (group
lm_eval.models), which came after 0.4.13. Importing this module registers the name "gemmule" in the others.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from gemmule._errors import ContextLengthError, MissingExtraError

if TYPE_CHECKING:
    from gemmule import Model

__all__ = ["GemmuleLM", "Scorer"]

try:
    _api: Any = importlib.import_module("lm_eval.api.model")
    _registry: Any = importlib.import_module("lm_eval.api.registry")
    _utils: Any = importlib.import_module("lm_eval.utils")
except ImportError:
    raise MissingExtraError("evaluations need one more package: pip install 'gemmule[eval]'") from None


class Scorer:
    """Continuations one after the other. What a text shares with the one before is not run again: the
    examples of a task, and its question before each of the answers.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._session = model._engine().session(
            n_ctx=model.n_ctx, kv_type=model.plan.kv_type, snapshot_limit=0
        )
        self._done: list[int] = []

    def likelihood(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """log P(continuation | context), and whether it is what greedy decoding would write. Of what does not
        fit the model's context, the beginning of `context` is left out.
        """
        n_ctx, n = self._model.n_ctx, len(continuation)
        if n == 0:
            return 0.0, True
        if n > n_ctx:
            what = f"a continuation of {n} tokens leaves no room for its context in {n_ctx}"
            raise ContextLengthError(f"{what}; give a larger n_ctx", n + 1, n_ctx)
        ids = [*context[-(n_ctx + 1 - n) :], *continuation]
        tokens = ids[:-1]  # what follows the last one is not asked
        first = len(tokens) - n  # the token behind which the continuation begins
        shared = 0
        while shared < min(first, len(self._done)) and self._done[shared] == tokens[shared]:
            shared += 1
        self._session.rewind(shared)
        self._done = []  # until it has run
        targets = np.full(len(tokens) - shared, -1, np.int32)
        targets[first - shared :] = continuation
        values, top_ids, _ = self._session.append_score(np.array(tokens[shared:], np.int32), targets, top=1)
        self._done = tokens
        scored = targets >= 0
        return float(values[scored].sum(dtype=np.float64)), bool((top_ids[scored, 0] == continuation).all())


class GemmuleLM(_api.LM):  # type: ignore[misc]
    """path and the options of gemmule.Model, as lm-eval's --model_args gives them."""

    def __init__(self, path: str, n_ctx: int = 4096, max_gen_toks: int = 256, **options: Any) -> None:
        super().__init__()
        from gemmule import Model

        known = {key: options[key] for key in ("n_threads", "kv_type", "isa", "packed") if key in options}
        self._model = Model(path, n_ctx=int(n_ctx), mmproj=False, **known)
        self._name = Path(path).name
        self._max_tokens = int(max_gen_toks)

    def close(self) -> None:
        """Lets the model go."""
        self._model.close()

    # -- what lm-eval asks ---------------------------------------------------------------------------------

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log-probability, greedy) of each (context, continuation)."""
        scorer = Scorer(self._model)
        return [scorer.likelihood(*self._pair(*request.args)) for request in _counted(requests, "scores")]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """The log-probability of each text, in lm-eval's windows."""
        scorer, n_ctx = Scorer(self._model), self._model.n_ctx
        totals = []
        for request in _counted(requests, "texts"):
            windows = _utils.get_rolling_token_windows(
                token_list=self._model.tokenizer.encode(request.args[0], add_bos=False),
                prefix_token=self._prefix,
                max_seq_len=n_ctx,
                context_len=1,
            )
            pieces = map(_utils.make_disjoint_window, windows)
            totals.append(sum(scorer.likelihood(*piece)[0] for piece in pieces))
        return totals

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Greedy, or as the task says, up to one of its stop texts."""
        texts = []
        for request in _counted(requests, "answers"):
            prompt, options = request.args
            until = options.get("until") or []
            names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
            most = next((options[name] for name in names if options.get(name)), self._max_tokens)
            temperature = float(options.get("temperature", 0.0))
            reply = self._model.generate(
                self._model.tokenizer.encode(prompt),
                max_tokens=int(most),
                temperature=temperature if options.get("do_sample", True) else 0.0,
                stop=[text for text in ([until] if isinstance(until, str) else until) if text],
                truncation="oldest",
            )
            texts.append(reply.text)
        return texts

    # -- chat ----------------------------------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        """By which lm-eval tells its caches of requests apart."""
        return self._name

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The source of the model's template; its name is not chosen here."""
        template = self._model._template
        return template.source if chat_template and template else ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt of a conversation. Without a generation prompt the last message is the assistant's, and
        the answer goes on behind it.
        """
        if add_generation_prompt:
            return self._model.render(chat_history).text
        *before, begun = chat_history
        return self._model.render(before).text + begun["content"]

    # ------------------------------------------------------------------------------------------------------

    @property
    def _prefix(self) -> int:
        """The token that stands before a text."""
        return self._model.tokenizer.bos_id or 0

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Their tokens. Spaces at the end of the context belong to the continuation, as lm-eval has it."""
        n_spaces = len(context) - len(context.rstrip())
        if n_spaces:
            context, continuation = context[:-n_spaces], context[-n_spaces:] + continuation
        encode = self._model.tokenizer.encode
        before, whole = encode(context), encode(context + continuation)
        if not before:
            before, whole = [self._prefix], [self._prefix, *whole]
        return whole[: len(before)], whole[len(before) :]


def _counted(requests: Sequence[Any], unit: str) -> tqdm[Any]:
    """With a bar for whoever looks."""
    return tqdm(requests, unit=f" {unit}", disable=not sys.stderr.isatty())


if "gemmule" not in getattr(_registry, "MODEL_REGISTRY", {}):
    _registry.register_model("gemmule")(GemmuleLM)
