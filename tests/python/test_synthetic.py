"""Files of random weights: what convert would write, but for the numbers of the matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gemmule
from gemmule._inspect import open_header
from project_modules import load_module

synthetic = load_module("tools", "make_synthetic")
TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny 12B with its assistant beside it."""
    folder: Path = tmp_path_factory.mktemp("synthetic") / "tiny"
    tiny_folder = load_module("tools", "tiny_folder")
    tiny_folder.write_folder(folder, "12b")
    tiny_folder.write_folder(folder.with_name("tiny-assistant"), "12b-assistant")
    return folder


def test_a_synthetic_file_is_a_converted_one_but_for_its_numbers(checkpoint: Path, tmp_path: Path) -> None:
    real, made, again = (tmp_path / name for name in ("real.gguf", "made.gguf", "again.gguf"))
    gemmule.convert(checkpoint, real, type="Q8_0")
    for path in (made, again, again):  # an old file is replaced
        synthetic.write_like(checkpoint, path, kind="Q8_0")
    assert made.stat().st_size == real.stat().st_size
    assert made.read_bytes() == again.read_bytes()
    assert made.read_bytes() != real.read_bytes()
    assert gemmule.verify(made).ok
    header, known = open_header(str(made)), open_header(str(real))
    assert header.keys() == known.keys()
    assert header.tensors() == known.tensors()  # names, types, shapes, places


@pytest.mark.parametrize("layout", ["gguf", "packed"])
def test_a_synthetic_model_sees_hears_and_drafts(checkpoint: Path, tmp_path: Path, layout: str) -> None:
    path = tmp_path / "made.gguf"
    synthetic.write_like(checkpoint, path, kind="Q4_K_M", layout=layout)
    with gemmule.Model(path, n_ctx=512) as model:
        assert {"image", "audio"} <= set(model.info.modalities)
        assert model.info.has_drafter
        sound = gemmule.Audio((np.zeros(1600, np.float32), 16_000))
        picture = np.full((48, 48, 3), 99, np.uint8)
        reply = model.chat("What is it?", images=picture, audio=sound, max_tokens=8, temperature=0)
        assert reply.usage.completion_tokens > 0
        assert np.isfinite(model.logits("What is it?")).all()


@pytest.mark.parametrize("kind", [*TYPES, "BF16", "F16", "F32"])
def test_random_rows_have_unit_gain(kind: str) -> None:
    n_rows, n_cols = 64, 1024
    rows = synthetic.RandomRows("blk.0.ffn_up.weight", n_rows, n_cols, kind)
    blocks = np.empty(gemmule.quantize(np.zeros((n_rows, n_cols), np.float32), kind).nbytes, np.uint8)
    rows.read_into(0, n_rows, blocks)
    numbers = gemmule.dequantize(blocks, kind, (n_rows, n_cols))
    x = np.random.default_rng(1).standard_normal(n_cols)
    assert np.isfinite(numbers).all()
    assert 0.8 < (numbers @ x).std() < 1.3


def test_the_whole_set_is_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, str]] = []

    def write(files: list[tuple[Path, str]], *, n_layers: int, **_: str) -> None:
        assert n_layers == 6
        asked.extend(files)
        for path, _type in files:
            path.touch()

    monkeypatch.setattr(synthetic, "write_synthetic", write)
    for out, types in ((tmp_path / "set", ["Q4_K_M", "Q8_0"]), (tmp_path / "one.gguf", ["Q6_K"])):
        monkeypatch.setattr("sys.argv", ["make_synthetic.py", str(out), "--layers", "6", "--type", *types])
        synthetic.main()
    assert [(path.name, kind) for path, kind in asked] == [
        ("12b-shaped-Q4_K_M.gguf", "Q4_K_M"),
        ("12b-shaped-Q8_0.gguf", "Q8_0"),
        ("one.gguf", "Q6_K"),
    ]


@pytest.mark.slow
def test_a_file_of_the_true_shapes(tmp_path: Path) -> None:
    path = tmp_path / "12b-shaped.gguf"
    synthetic.write_synthetic([(path, "Q4_K_M")], n_layers=2)
    with gemmule.Model(path, n_ctx=512) as model:
        assert model.info.d_model == 3840
        assert model.info.has_drafter
        picture = np.full((480, 640, 3), 99, np.uint8)
        assert model.chat("What is it?", images=picture, max_tokens=2).usage.completion_tokens == 2
    path.unlink()  # 1.7 GB that pytest would keep for a while
