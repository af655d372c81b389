"""Size report: the largest files and functions of the tree, and those over the budgets of docs/DESIGN.md.

Budgets start a discussion in review; they fail no build. `--strict` fails on a file above the hard limit.
C++ functions are found by matching braces over text without comments and strings, Python functions by `ast`.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILE_BUDGET = 500
KERNEL_BUDGET = 900  # *.inl
FUNCTION_BUDGET = 60
HARD_LIMIT = 1200
FOLDERS = ("csrc", "python", "tests", "benchmarks", "tools")
SUFFIXES = {".py", ".cpp", ".h", ".inl"}

_COMMENT = r"//[^\n]*|/\*.*?\*/"
_LITERAL = r"""R"\(.*?\)"|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])+'"""
_NOISE = re.compile(f"{_COMMENT}|{_LITERAL}", re.DOTALL)
_TYPE = re.compile(r"\b(namespace|class|struct|enum|union|extern)\b")
_NAME = re.compile(r"([~\w:]+|operator\s*\S+?)\s*\(")


@dataclass(frozen=True)
class Size:
    n_lines: int
    where: str
    budget: int


def _blank(match: re.Match[str]) -> str:
    # Line numbers of what follows must not change.
    return "\n" * match.group().count("\n")


def cpp_functions(text: str) -> Iterator[tuple[str, int, int]]:
    """(name, first line, number of lines) of each function that has a body and is not inside another one."""
    text = re.sub(r"(?<=\d)'(?=\d)", "", text)
    text = re.sub(r"^\s*#.*$", "", _NOISE.sub(_blank, text), flags=re.MULTILINE)
    scopes: list[tuple[str, int] | None] = []  # (name, first line) for a function, None for any other brace
    head, head_line, line = "", 1, 1
    for char in text:
        if char == "\n":
            line += 1
        if char == "{":
            name = _NAME.search(head)
            is_code = name is not None and not _TYPE.match(head.strip()) and "=" not in head[: name.start()]
            scopes.append((name.group(1), head_line) if name and is_code and not any(scopes) else None)
            head = ""
        elif char == "}":
            scope = scopes.pop() if scopes else None
            if scope:
                yield scope[0], scope[1], line - scope[1] + 1
            head = ""
        elif char == ";":
            head = ""
        elif head or not char.isspace():
            if not head:
                head_line = line
            head += char


def python_functions(text: str) -> Iterator[tuple[str, int, int]]:
    """(name, first line, number of lines) of each function."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1


def measure(root: Path) -> tuple[list[Size], list[Size]]:
    """Files and functions below the source folders of `root`, largest first."""
    files: list[Size] = []
    functions: list[Size] = []
    for folder in FOLDERS:
        for path in sorted(p for p in (root / folder).rglob("*") if p.suffix in SUFFIXES):
            text = path.read_text(encoding="utf-8")
            name = path.relative_to(root).as_posix()
            budget = KERNEL_BUDGET if path.suffix == ".inl" else FILE_BUDGET
            files.append(Size(len(text.splitlines()), name, budget))
            found = python_functions(text) if path.suffix == ".py" else cpp_functions(text)
            functions += [Size(n, f"{name}:{line} {called}", FUNCTION_BUDGET) for called, line, n in found]
    return sorted(files, key=_largest_first), sorted(functions, key=_largest_first)


def _largest_first(size: Size) -> tuple[int, str]:
    return -size.n_lines, size.where


def _print(title: str, sizes: list[Size], top: int) -> None:
    over = [size for size in sizes if size.n_lines > size.budget]
    print(f"{title}: {len(sizes)}, {sum(s.n_lines for s in sizes)} lines, {len(over)} over budget")
    for size in [*over, *[s for s in sizes if s not in over]][: max(top, len(over))]:
        mark = f"  over {size.budget}" if size.n_lines > size.budget else ""
        print(f"  {size.n_lines:5d}  {size.where}{mark}")


def main() -> int:
    parser = argparse.ArgumentParser(description="report the largest files and functions")
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).resolve().parent.parent)
    parser.add_argument(
        "--strict", action="store_true", help=f"fail on a file of more than {HARD_LIMIT} lines"
    )
    parser.add_argument("--top", type=int, default=8, help="entries of each list")
    options = parser.parse_args()
    files, functions = measure(options.root)
    _print("files", files, options.top)
    _print("functions", functions, options.top)
    too_large = [size for size in files if size.n_lines > HARD_LIMIT]
    for size in too_large:
        print(f"{size.where}: {size.n_lines} lines; split it, {HARD_LIMIT} is the hard limit")
    return 1 if options.strict and too_large else 0


if __name__ == "__main__":
    sys.exit(main())
