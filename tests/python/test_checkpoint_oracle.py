"""The tiny folders written with numpy are what transformers saves, and both are read the same way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from checkpoint_helpers import read_tensor, tiny_folder
from gemmule._convert.checkpoint import load_checkpoint
from gemmule._convert.safetensors import open_weights
from project_modules import load_module

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
pytest.importorskip("torch", reason="needs the [oracle] extra")
pytest.importorskip("transformers", reason="needs the [oracle] extra")
make_tiny_checkpoint = load_module("tools", "make_tiny_checkpoint")


@pytest.mark.parametrize("variant", [*tiny_folder.VARIANTS])
def test_numpy_folder_is_what_transformers_saves(variant: str, tmp_path: Path) -> None:
    ours = open_weights(tiny_folder.write_folder(tmp_path / "ours", variant))
    make_tiny_checkpoint.save(variant, tmp_path / "theirs")
    theirs = open_weights(tmp_path / "theirs")
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert (tensor.dtype, tensor.shape) == (theirs[name].dtype, theirs[name].shape)
        a, b = bytearray(tensor.n_bytes), bytearray(tensor.n_bytes)
        tensor.read_bytes(0, memoryview(a))
        theirs[name].read_bytes(0, memoryview(b))
        assert a == b, name


@pytest.mark.parametrize("options", [{"wide": True}, {"old_dialect": True}, {"tied": False}])
@pytest.mark.parametrize("variant", ["12b", "e2b", "26b"])
def test_options_of_saved_folders(variant: str, options: dict[str, bool], tmp_path: Path) -> None:
    make_tiny_checkpoint.save(variant, tmp_path / "theirs", dtype="F32", shards=True, **options)
    tiny_folder.write_folder(tmp_path / "ours", variant, dtype="F32", **options)
    a, b = load_checkpoint(tmp_path / "ours").text, load_checkpoint(tmp_path / "theirs").text
    keys = [{kv.key: kv.value for kv in image.metadata if kv.key != "general.name"} for image in (a, b)]
    assert str(keys[0]) == str(keys[1])
    for ours, theirs in zip(a.tensors, b.tensors, strict=True):
        assert (ours.name, ours.shape) == (theirs.name, theirs.shape)
        assert np.array_equal(read_tensor(ours, 64), read_tensor(theirs, 64))
