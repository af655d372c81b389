"""The start-up budget, measured by what gets imported rather than by time."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gemmule

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("numpy", "tokenizers", "gguf", "psutil", "PIL", "soundfile", "gemmule._core")


def imported(code: str) -> set[str]:
    show = "import sys; print('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}"], capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


def test_import_prints_nothing_and_loads_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", "import gemmule"], capture_output=True, check=True)
    assert done.stdout == done.stderr == b""
    assert not imported("import gemmule") & set(HEAVY)


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_imports_click_only(arguments: list[str]) -> None:
    modules = imported(f"from gemmule.cli import run_command_line; assert run_command_line({arguments}) == 0")
    assert "click" in modules
    assert not modules & set(HEAVY)


def test_inspect_needs_no_tokenizer_package() -> None:
    assert "tokenizers" not in imported("import gemmule; gemmule.inspect")


def test_the_version_is_a_constant_equal_to_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert gemmule.__version__ == project["version"]
    modules = imported("from gemmule.cli import run_command_line; run_command_line(['--version'])")
    assert not modules & {"importlib.metadata", *HEAVY}
