"""Drafters of freshly made tiny models of the whole family against transformers (marker oracle).

The shapes are those of 12B, E2B, E4B, 26B and 31B, with other windows, seeds and prompts than the stored
ones; a round must give the same tokens and, in float32, the same logits and hidden states to 1e-4 of the
largest of their row (1e-7 to 4e-5 are reached). Checkpoint folders go through the converter. The reference
sees what ours sees: see tools/make_drafter_golden.py. With quantized weights, transformers runs on what the
codes stand for, so that what remains is the rounding of activations to 8 bits.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemmule
from gemmule import _core
from project_modules import load_module

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.17")
pytest.importorskip("gguf")

tiny = load_module("tools", "make_tiny_model")
drafters = load_module("tools", "make_drafter_golden")
folders = load_module("tools", "tiny_folder")
checkpoints = load_module("tools", "make_tiny_checkpoint")

SHAPES = tiny.SHAPES
TARGETS = {
    "12b": (SHAPES["gemma4_unified"], 0),
    "12b-5to1": (replace(SHAPES["gemma4_unified"], sliding_layers=(True, True, True, True, True, False)), 0),
    "12b-wide-window": (replace(SHAPES["gemma4"], window=60), 0),
    "e2b": (SHAPES["gemma4-e2b"], 32),
    "e2b-plain": (SHAPES["gemma4-e2b"], 0),
    "e4b": (SHAPES["gemma4-e4b"], 16),
    "26b": (SHAPES["gemma4-26b"], 0),
    "31b": (SHAPES["gemma4-31b"], 0),
}


def _error(value: np.ndarray, expected: np.ndarray) -> float:
    return float((np.abs(value - expected).max(axis=1) / np.abs(expected).max(axis=1)).max())


def _compare(text: Path, drafter: Path, expected: dict[str, np.ndarray], bound: float) -> None:
    model = _core.Model(str(text), n_threads=1)
    network = _core.Drafter(model, _core.GgufFile(str(drafter)))
    session = model.session(n_ctx=256, kv_type="f32")
    hidden = session.append_hidden(expected["ids"])[-1]
    assert _error(hidden[None], expected["hidden"][None]) < bound
    for token, logits, next_hidden in zip(
        expected["token"], expected["logits"], expected["next_hidden"], strict=True
    ):
        ours, hidden = network.step(session, int(token), hidden, len(expected["ids"]))
        assert _error(ours[None], logits[None]) < bound
        assert _error(hidden[None], next_hidden[None]) < bound
        if bound < 1e-3:
            assert ours.argmax() == logits.argmax()


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(("seed", "length"), [(5, 50), (6, 9)])
def test_rounds_match(name: str, seed: int, length: int, tmp_path: Path) -> None:
    shape, n_clusters = TARGETS[name]
    target = tiny.build_model(shape, seed)
    tiny.write_gguf(target, shape, tmp_path / "text.gguf", seed=seed)
    small = drafters.drafter_of(shape, n_clusters)
    drafter = drafters.build_drafter(small, seed)
    drafters.write_drafter(drafter, small, tmp_path / "drafter.gguf", seed=seed)
    ids = drafters.make_prompt(shape.n_vocab, length, seed)
    expected = drafters.run_reference(target, drafter, ids, 5)
    _compare(tmp_path / "text.gguf", tmp_path / "drafter.gguf", expected, 1e-4)


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_0", "F16", "BF16"])
def test_quantized_drafters_stay_close(type_name: str, tmp_path: Path) -> None:
    shape = SHAPES["gemma4"]
    target = tiny.build_model(shape, 3)
    tiny.write_gguf(target, shape, tmp_path / "text.gguf", seed=3)
    small = drafters.drafter_of(shape, d_model=64, d_ff=96)
    drafter = drafters.build_drafter(small, 3)
    drafters.write_drafter(drafter, small, tmp_path / "drafter.gguf", seed=3, type_name=type_name)
    drafters.load_drafter(drafter, tmp_path / "drafter.gguf")
    ids = drafters.make_prompt(shape.n_vocab, 30, 3)
    expected = drafters.run_reference(target, drafter, ids, 1)
    bound = 1e-4 if type_name in ("F16", "BF16") else 5e-2
    _compare(tmp_path / "text.gguf", tmp_path / "drafter.gguf", expected, bound)


@pytest.mark.parametrize(
    ("name", "assistant"), [("12b", "12b-assistant"), ("e2b", "e2b-assistant"), ("26b", "31b-assistant")]
)
def test_converted_folders_draft_as_transformers_does(name: str, assistant: str, tmp_path: Path) -> None:
    checkpoints.save(name, tmp_path / "model", dtype="F32")
    checkpoints.save(assistant, tmp_path / "model-assistant", dtype="F32")
    gemmule.convert(tmp_path / "model", tmp_path / "both.gguf", type="F32")
    text, *_, drafter = gemmule.split(tmp_path / "both.gguf", tmp_path / "parts")
    target = checkpoints.build(name)
    language: Any = target.model.language_model
    reference = _Text(language, target.lm_head)
    ids = drafters.make_prompt(folders.N_VOCAB, 45, 8)
    expected = drafters.run_reference(reference, checkpoints.build(assistant), ids, 5)
    _compare(text, drafter, expected, 1e-4)


class _Text:
    """The text half of a multimodal model, with the head that the whole model applies."""

    def __init__(self, language: Any, head: Any) -> None:
        self._language, self._head = language, head
        self.config = language.config

    def get_input_embeddings(self) -> Any:
        return self._language.get_input_embeddings()

    def __call__(self, **options: Any) -> Any:
        result = self._language(**options)
        cap = self.config.final_logit_softcapping
        result.logits = cap * torch.tanh(self._head(result.last_hidden_state) / cap)
        return result
