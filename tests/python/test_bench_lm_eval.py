"""The class that lm-eval drives, with lm-eval's two modules replaced by the little of them that is used."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gemmule

NAME = "gemmule._bench.lm_eval"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    names: dict[str, type] = {}

    def register_model(name: str) -> Any:
        return lambda cls: names.setdefault(name, cls)

    api = types.ModuleType("lm_eval.api.model")
    api.LM = type("LM", (), {})  # type: ignore[attr-defined]
    registry = types.ModuleType("lm_eval.api.registry")
    registry.MODEL_REGISTRY, registry.register_model = names, register_model  # type: ignore[attr-defined]
    for part in ("lm_eval", "lm_eval.api"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", api)
    monkeypatch.setitem(sys.modules, "lm_eval.api.registry", registry)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield importlib.import_module(NAME)
    assert list(names) == ["gemmule"]
    sys.modules.pop(NAME, None)


def request(*arguments: Any) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


def test_log_likelihoods_are_those_of_the_logits(module: Any, demo_model_path: Path) -> None:
    lm = module.GemmuleLM(str(demo_model_path), n_ctx=256)
    context, right, wrong = "One, two, three, four,", " five", " banana"
    (good, greedy), (bad, other) = lm.loglikelihood([request(context, right), request(context, wrong)])
    assert greedy
    assert not other
    assert bad < good < 0
    with gemmule.Model(demo_model_path, n_ctx=256) as model:
        ids = model.tokenizer.encode(context + right)
        row = model.logits(ids[:-1]).astype(np.float64)
    assert good == pytest.approx(row[ids[-1]] - np.log(np.exp(row - row.max()).sum()) - row.max(), abs=1e-3)
    (moved, _) = lm.loglikelihood([request(context + " ", "five")])[0]  # the space goes to the continuation
    assert moved == pytest.approx(good, abs=1e-6)


def test_a_rolling_text_is_cut_into_windows(module: Any, tiny_gemma4_path: Path) -> None:
    text = "a text that is much longer than the context of the model " * 4
    whole = module.GemmuleLM(str(tiny_gemma4_path), n_ctx=512).loglikelihood_rolling([request(text)])
    parts = module.GemmuleLM(str(tiny_gemma4_path), n_ctx=64).loglikelihood_rolling([request(text)])
    assert whole[0] < 0
    assert parts[0] == pytest.approx(whole[0], rel=0.2)


def test_a_continuation_that_fills_the_context_is_refused(module: Any, tiny_gemma4_path: Path) -> None:
    with gemmule.Model(tiny_gemma4_path, n_ctx=8) as model:
        assert module.likelihood(model, [5] * 20, [6] * 7)[0] < 0
        for n in (8, 9):
            with pytest.raises(gemmule.ContextLengthError, match=f"{n} tokens leaves no room"):
                module.likelihood(model, [5] * 20, [6] * n)


def test_generation_stops_where_the_task_says(module: Any, demo_model_path: Path) -> None:
    lm = module.GemmuleLM(str(demo_model_path), n_ctx=256, max_gen_toks=12)
    (text,) = lm.generate_until([request("One, two, three, four,", {"until": ["seven"]})])
    assert "five" in text
    assert "seven" not in text


def test_without_lm_eval_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    with pytest.raises(gemmule.MissingExtraError, match=r"gemmule\[eval\]"):
        importlib.import_module(NAME)
