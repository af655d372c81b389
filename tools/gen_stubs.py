"""Write python/gemmule/_core.pyi from the installed gemmule._core, or compare with `--check`.

pybind11-stubgen reads the signatures that pybind11 put into the docstrings. What it writes is then made fit
for `mypy --strict` and independent of versions and machines: a default of None makes its argument optional,
bare generics get their arguments, other defaults become `...`, values of attributes go, imports and `__all__`
are sorted, and ruff formats the result. Needs the [lint] extra. `--check` exits with 1 and a diff when stale.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import inspect
import subprocess
import sys
import tempfile
from pathlib import Path

HEADER = """# Generated from the built core by tools/gen_stubs.py (`make stubs`). Do not edit.
# ruff: noqa
"""
MODULE = "gemmule._core"
STUB = Path(__file__).resolve().parent.parent / "python" / "gemmule" / "_core.pyi"
BARE = {
    "dict": "dict[str, typing.Any]",
    "list": "list[typing.Any]",
    "tuple": "tuple[typing.Any, ...]",
    "numpy.ndarray": "numpy.ndarray[typing.Any, typing.Any]",
}


class _Bare(ast.NodeTransformer):
    """Gives bare generic types their arguments, inside one annotation."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        node.slice = self.visit(node.slice)
        return node

    def _replace(self, node: ast.expr) -> ast.expr:
        text = BARE.get(ast.unparse(node))
        return ast.parse(text, mode="eval").body if text else node

    visit_Name = _replace
    visit_Attribute = _replace


def _optional(annotation: ast.expr) -> ast.expr:
    if "None" in ast.unparse(annotation).split(" | ") or ast.unparse(annotation) == "typing.Any":
        return annotation
    return ast.BinOp(annotation, ast.BitOr(), ast.Constant(None))


class _Tidy(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):  # a docstring
            node.value = ast.Constant(inspect.cleandoc(node.value.value))
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        args = node.args
        positional = [*args.posonlyargs, *args.args]
        pairs = [
            *zip(positional[len(positional) - len(args.defaults) :], args.defaults, strict=True),
            *zip(args.kwonlyargs, args.kw_defaults, strict=True),
        ]
        for arg in [*positional, *args.kwonlyargs]:
            if arg.annotation:
                arg.annotation = _Bare().visit(arg.annotation)
        for arg, default in pairs:
            if isinstance(default, ast.Constant) and default.value is None and arg.annotation:
                arg.annotation = _optional(arg.annotation)
        args.defaults = [_simple(default) for default in args.defaults]
        args.kw_defaults = [default and _simple(default) for default in args.kw_defaults]
        if node.returns:
            node.returns = _Bare().visit(node.returns)
        self.generic_visit(node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        node.annotation = _Bare().visit(node.annotation)
        is_all = isinstance(node.target, ast.Name) and node.target.id == "__all__"
        if not is_all:  # values of attributes depend on the build
            node.value = None
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        return None if node.module == "__future__" else node


def _simple(default: ast.expr) -> ast.expr:
    """Plain literals stay; a container or an object (it may print an address) becomes `...`."""
    try:
        value = ast.literal_eval(default)
    except ValueError:
        return ast.Constant(...)
    return default if value is None or isinstance(value, bool | int | float | str) else ast.Constant(...)


def tidy(raw: str) -> str:
    """The stub as the repository keeps it, given what pybind11-stubgen wrote."""
    tree = ast.fix_missing_locations(_Tidy().visit(ast.parse(raw)))
    body = tree.body
    has_docstring = bool(body) and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
    body.insert(1 if has_docstring else 0, ast.Import([ast.alias("typing")]))
    text = _ruff(["check", "--fix-only", "-q", "--select", "F401,I,RUF022,UP"], ast.unparse(tree) + "\n")
    return HEADER + _ruff(["format", "-q"], text)


def _ruff(arguments: list[str], text: str) -> str:
    command = [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", str(STUB), "-"]
    return subprocess.run(command, input=text, check=True, capture_output=True, text=True).stdout


def generate() -> str:
    """Run pybind11-stubgen on the installed module and tidy its output."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pybind11_stubgen", MODULE, "-o", folder, "--exit-code"]
        done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(
                f"no stub of {MODULE}: install the package and the tools first: "
                f'pip install ".[lint]"\n{done.stdout}{done.stderr}'
            )
        return tidy(Path(folder, *MODULE.split(".")).with_suffix(".pyi").read_text(encoding="utf-8"))


def main() -> int:
    parser = argparse.ArgumentParser(description="generate the type stub of the core")
    parser.add_argument("--check", action="store_true", help="compare with the stored stub, write nothing")
    options = parser.parse_args()
    new = generate()
    if not options.check:
        STUB.write_text(new, encoding="utf-8")
        print(f"wrote {STUB.name}: {len(new.splitlines())} lines")
        return 0
    old = STUB.read_text(encoding="utf-8") if STUB.exists() else ""
    diff = list(difflib.unified_diff(old.splitlines(), new.splitlines(), "stored", "built", lineterm=""))
    for line in diff:
        print(line)
    print(f"{STUB.name} is " + ("stale: run tools/gen_stubs.py" if diff else "current"))
    return 1 if diff else 0


if __name__ == "__main__":
    sys.exit(main())
