"""Greedy generation with the drafter on and off: the same tokens, so the times can be compared.

The share of drafted tokens that were kept stands beside the speed, as a speed-up holds for its text only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemmule._errors import Error

if TYPE_CHECKING:
    from gemmule import Model

__all__ = ["drafting_tests"]

_PROMPT = "Write a short story about a lighthouse keeper and a storm."


def drafting_tests(model: Model, n_gen: int) -> list[dict[str, Any]]:
    """Two tests. Without a drafter the text itself is looked up in, which every model can do."""
    tests, texts = [], set()
    for drafted in (False, True):
        # The model must not end early, or the two would not be the same length as other files' tests.
        bias = {token: -1e9 for token in model.tokenizer.eos_ids}
        reply = model.generate(
            _PROMPT, max_tokens=n_gen, temperature=0.0, logit_bias=bias, draft="auto" if drafted else False
        )
        timings = reply.timings
        texts.add(tuple(reply.tokens))
        test = {
            "seconds": timings.predicted_ms / 1e3,
            "n_gen": timings.predicted_n - 1,  # the first token comes out of the prompt
            "test": f"drafting {'on' if drafted else 'off'}",
        }
        if drafted:
            test["draft_n"] = timings.draft_n
            test["draft_accepted"] = timings.draft_n_accepted
            test["draft_acceptance"] = timings.draft_acceptance
        tests.append(test)
    if len(texts) != 1:
        raise Error("drafting changed the tokens of a greedy answer; please report this file and machine")
    return tests
