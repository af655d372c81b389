"""The random 12B of 165 thousand parameters that tests of media and chat share."""

from __future__ import annotations

from pathlib import Path

import gemmule
from project_modules import load_module

__all__ = ["write_tiny_12b"]


def write_tiny_12b(folder: Path) -> Path:
    """A converted checkpoint with image and audio embedders and the special tokens of Gemma 4."""
    source = folder / "tiny-12b"
    load_module("tools", "tiny_folder").write_folder(source, "12b", dtype="F32")
    path = folder / "tiny-12b.gguf"
    gemmule.convert(source, path, type="F32")
    return path
