"""The checks of tools/: they pass on this tree, and each one finds what it is made to find."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from project_modules import ROOT, load_module


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / script), *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_tree_keeps_the_folder_rule() -> None:
    done = run("check_layers.py")
    assert done.returncode == 0, done.stdout


def test_tree_keeps_the_hard_size_limit() -> None:
    done = run("check_sizes.py", "--strict")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("path", "line", "complaint"),
    [
        ("core/a.h", '#include "quant/blocks.h"', "core/ may not include"),
        ("quant/a.cpp", '#include "gguf/reader.h"', "quant/ may not include"),
        ("model/a.cpp", '#include "backend/cpu/cpu_backend.h"', "model/ may not include"),
        ("backend/backend.h", '#include "quant/blocks.h"', "backend/backend.h may not include"),
        ("backend/cpu/kernels/a.inl", "#include <vector>", "may not include <vector>"),
        ("backend/cpu/isa/a.h", '#include "core/error.h"', "backend/cpu/isa/ may not include"),
        ("engine/a.cpp", "#include <Python.h>", "csrc/bindings only"),
        ("engine/a.cpp", "#include <pybind11/numpy.h>", "csrc/bindings only"),
        ("core/a.cpp", '#include "missing.h"', "not a file"),
        ("elsewhere/a.cpp", "#include <vector>", "no rule covers"),
    ],
)
def test_layers_finds_a_forbidden_include(tmp_path: Path, path: str, line: str, complaint: str) -> None:
    for header in ("quant/blocks.h", "gguf/reader.h", "backend/cpu/cpu_backend.h", "core/error.h"):
        write(tmp_path / header, "#pragma once\n")
    write(tmp_path / path, line + "\n")
    problems = list(load_module("tools", "check_layers").check_cpp(tmp_path))
    assert len(problems) == 1
    assert complaint in problems[0]
    assert path in problems[0]


@pytest.mark.parametrize(
    ("path", "line", "allowed"),
    [
        ("cli/run.py", "from gemmule import Model", True),
        ("cli/run.py", "import gemmule", True),
        ("cli/run.py", "from . import output", True),
        ("cli/run.py", "from ._progress import bar", True),
        ("cli/run.py", "from gemmule import __version__", True),
        ("cli/run.py", "from gemmule import _core", False),
        ("cli/run.py", "import gemmule._core", False),
        ("cli/run.py", "from .._model import Model", True),
        ("cli/run.py", "import gemmule\ngemmule._core.cpu_info()", False),
        ("server/app.py", "from gemmule._core import Model", False),
        ("_model.py", "from gemmule import _core", True),
        ("_errors.py", "from gemmule._core import Model", False),
    ],
)
def test_layers_keeps_front_ends_on_the_public_modules(
    tmp_path: Path, path: str, line: str, allowed: bool
) -> None:
    write(tmp_path / path, line + "\n")
    problems = list(load_module("tools", "check_layers").check_python(tmp_path))
    assert bool(problems) is not allowed, problems


def test_sizes_measures_functions_not_classes_or_blocks() -> None:
    text = """
    namespace a {
    struct S {
      int f(int x) const {
        if (x) { return 1; }  // not { a brace
        return '}' + "{"[0] + 1'000'000;
      }
      int value = 0;
    };
    template <class T>
    void g(T t,
           int n) {
      auto lambda = [&](int i) {
        return i;
      };
    }
    constexpr int kTable[] = {f(1), 2};
    }
    """
    found = [(name, n_lines) for name, _, n_lines in load_module("tools", "check_sizes").cpp_functions(text)]
    assert found == [("f", 4), ("g", 7)]


def test_sizes_strict_fails_on_a_huge_file(tmp_path: Path) -> None:
    write(tmp_path / "csrc" / "big.cpp", "int x;\n" * 1201)
    assert run("check_sizes.py", str(tmp_path)).returncode == 0
    strict = run("check_sizes.py", "--strict", str(tmp_path))
    assert strict.returncode == 1
    assert "csrc/big.cpp: 1201 lines" in strict.stdout


@pytest.mark.parametrize(
    ("listing", "complaint"),
    [
        ("_ZN7gemmule12kernels_avx2Ev T 0 a\n", None),
        ("kernels_avx2 T 0 a\n", None),
        ("kernels_avx2 T 0 a\nDW.ref.__gxx_personality_v0 V 0 8\n", None),
        ("", "0 functions"),
        ("_ZN7gemmule14kernels_scalarEv T 0 a\n", "0 functions"),
        ("_ZN7gemmule12kernels_avx2Ev T 0 a\n_ZSt4sqrtf W 0 b\n", "weak symbol _ZSt4sqrtf"),
        ("_ZN7gemmule12kernels_avx2Ev T 0 a\n_ZN7gemmule1fEv T 0 b\n", "extra global symbol"),
        ("_ZN7gemmule12kernels_avx2Ev T 0 a\ntable R 0 b\n", "extra global symbol"),
    ],
)
def test_isa_objects_accepts_one_strong_function_only(listing: str, complaint: str | None) -> None:
    problems = list(load_module("tools", "check_isa_objects").object_problems("avx2", listing))
    if complaint is None:
        assert problems == []
    else:
        assert any(complaint in problem for problem in problems), problems


def test_isa_objects_needs_a_build(tmp_path: Path) -> None:
    done = run("check_isa_objects.py", str(tmp_path))
    assert done.returncode == 1
    assert "build it first" in done.stdout


def test_stub_is_made_strict_and_independent_of_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    gen_stubs = load_module("tools", "gen_stubs")
    monkeypatch.setattr(gen_stubs, "_ruff", lambda arguments, text: text)
    raw = '''
"""The core."""
from __future__ import annotations
__all__: list[str] = ['f', 'g']
def f(a: list, stop: Token = None, *, b: int | None = None, c: float = 0.5, d: dict[str, tuple] = {}) -> dict:
    ...
def g(x: Token = <Token object at 0x7f00>) -> None:
    ...
__version__: str = '0.1.0'
'''.replace("<Token object at 0x7f00>", "Token()")
    text = gen_stubs.tidy(raw)
    assert text.startswith(gen_stubs.HEADER)
    assert "__future__" not in text
    assert "0.1.0" not in text
    assert "a: list[typing.Any], stop: Token | None=None" in text
    assert "b: int | None=None, c: float=0.5, d: dict[str, tuple[typing.Any, ...]]=..." in text
    assert "-> dict[str, typing.Any]" in text
    assert "def g(x: Token=...)" in text
    assert "['f', 'g']" in text
