"""The packer of the core: what it refuses, and how a file lists its packed tensors."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from gemmule import _core

DATA = np.arange(16 * 144, dtype=np.uint16).astype(np.uint8)  # 8 rows of two Q4_K blocks


@pytest.mark.parametrize("turn", [_core.pack_rows, _core.unpack_rows])
@pytest.mark.parametrize(
    ("kind", "rows", "cols", "words"),
    [
        ("Q4_K", 7, 512, "7 rows of 512 elements"),
        ("Q4_K", -8, 512, "-8 rows"),
        ("Q4_K", 8, 500, "500 elements has no packed form"),
        ("F32", 8, 72, "F32 matrix"),
        ("Q4_K", 16, 512, "2304 bytes are not 16 Q4_K rows"),
        ("Q4_K", 8, 2**62, "2304 bytes"),
        ("Q9_K", 8, 512, '"Q9_K" is not a tensor type'),
    ],
)
def test_wrong_matrices_are_refused(turn: object, kind: str, rows: int, cols: int, words: str) -> None:
    assert callable(turn)
    with pytest.raises(ValueError, match=words):
        turn(kind, rows, cols, DATA)


def test_other_arrays_are_refused() -> None:
    with pytest.raises(TypeError):
        _core.pack_rows("Q4_K", 8, 512, DATA.view(np.int8))
    with pytest.raises(TypeError):
        _core.pack_rows("Q4_K", 8, 256, DATA[::2])


def test_the_input_stays_as_it_is() -> None:
    data = DATA.copy()
    packed = _core.pack_rows("Q4_K", 8, 512, data)
    assert np.array_equal(data, DATA)
    assert packed.size == DATA.size
    assert not np.array_equal(packed, DATA)
    assert np.array_equal(_core.unpack_rows("Q4_K", 8, 512, packed), DATA)


def test_a_file_says_which_tensors_are_packed(tmp_path: Path) -> None:
    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text)) + text.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 2)
    head += string("general.alignment") + struct.pack("<II", 4, 4096)
    head += string("gemmule.layout") + struct.pack("<I", 8) + string("r8p64")
    head += string("a") + struct.pack("<IQQIQ", 2, 512, 8, 4096 + 12, 0)
    head += string("b") + struct.pack("<IQIQ", 1, 8, 0, 4096)
    path = tmp_path / "packed.gguf"
    path.write_bytes(head.ljust(4096, b"\0") + DATA.tobytes().ljust(4096, b"\0") + bytes(32))
    file = _core.GgufFile(str(path))
    assert file.tensors() == [
        ("a", "Q4_K", (512, 8), 4096, 2304, "r8p64"),
        ("b", "F32", (8,), 8192, 32, "gguf"),
    ]
