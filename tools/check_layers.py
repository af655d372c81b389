"""The folder rule of docs/DESIGN.md, checked by text: who may include or import whom.

C++: each folder of csrc/ lists the folders it may include from; the first rule whose prefix matches decides.
Kernel code may see nothing but its own siblings and three system headers, because an inline function of any
other header would be compiled for an instruction set that the machine may lack. Python: the front ends
(`cli`, `server`) never import `_core`, and `_errors`, which the core itself imports, imports nothing.
Exit status: 0 clean, 1 with one line per broken rule.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KERNEL_SYSTEM = ("cstddef", "cstdint", "immintrin.h", "arm_neon.h")
KERNEL_FILES = (
    "backend/cpu/kernel_table.h",
    "quant/blocks.h",
    "quant/packed_bits.h",
    "backend/cpu/kernels/",
    "backend/cpu/isa/",
)
PYTHON_HEADERS = re.compile(r"^(Python\.h|pybind11/.*|numpy/.*)$")
INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)')


# What `cpu_info` and `measure_roofline` report: all that the bindings ask the CPU backend for without going
# through a model.
CPU_REPORT = ("backend/cpu/cpu_features.h", "backend/cpu/kernel_select.h", "backend/cpu/roofline.h")


@dataclass(frozen=True)
class Rule:
    where: str  # a path below csrc/, or a folder with a trailing slash
    may: tuple[str, ...]  # what files there may include with quotes, in the same notation
    system: tuple[str, ...] | None = None  # the only <headers> allowed; None: any


# Most specific first. That a folder may include from itself is written out, so that exceptions stay visible.
RULES = (
    Rule("backend/cpu/kernels/", KERNEL_FILES, KERNEL_SYSTEM),
    Rule("backend/cpu/isa/", KERNEL_FILES, KERNEL_SYSTEM),
    Rule("backend/cpu/kernel_table.h", (), ("cstddef", "cstdint")),
    Rule("quant/blocks.h", (), ("cstddef", "cstdint")),
    Rule("quant/packed_bits.h", ("quant/blocks.h",), ("cstddef", "cstdint")),
    Rule("backend/backend.h", ("core/",)),
    Rule("backend/cpu/", ("core/", "quant/", "backend/")),
    Rule("backend/", ("core/", "quant/", "backend/")),
    Rule("core/", ("core/",)),
    Rule("quant/", ("core/", "quant/")),
    Rule("gguf/", ("core/", "quant/", "gguf/")),
    Rule("model/", ("core/", "quant/packed.h", "gguf/", "backend/backend.h", "model/")),
    Rule("engine/", ("core/", "quant/packed.h", "gguf/", "backend/", "model/", "engine/")),
    Rule("bindings/", ("core/", "quant/", "gguf/", "engine/", "bindings/", *CPU_REPORT)),
)
FRONT_ENDS = ("cli", "server")


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(path.startswith(p) if p.endswith("/") else path == p for p in patterns)


def check_cpp(csrc: Path) -> Iterator[str]:
    """One sentence for each include below `csrc` that the rules do not allow."""
    for file in sorted(p for p in csrc.rglob("*") if p.suffix in {".h", ".inl", ".cpp"}):
        name = file.relative_to(csrc).as_posix()
        rule = next((r for r in RULES if _matches(name, (r.where,))), None)
        if rule is None:
            yield f"csrc/{name}: no rule covers this folder; add one to tools/check_layers.py"
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            found = INCLUDE.match(line)
            if not found:
                continue
            own, system = found.groups()
            where = f"csrc/{name}:{number}"
            header = own or system
            if PYTHON_HEADERS.match(header):
                if not name.startswith("bindings/"):
                    yield f"{where}: <{header}> is for csrc/bindings only"
            elif own and not (csrc / own).is_file():
                yield f'{where}: "{own}" is not a file below csrc/; write includes from csrc/'
            elif own and not _matches(own, rule.may):
                yield f'{where}: {rule.where} may not include "{own}"'
            elif system and rule.system is not None and system not in rule.system:
                yield f"{where}: {rule.where} may not include <{system}>, only {', '.join(rule.system)}"


def _imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything imported; `package` resolves relative imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(p for p in (base, node.module or "") if p)
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "gemmule":
            yield node.lineno, f"gemmule.{node.attr}"


def check_python(package: Path) -> Iterator[str]:
    """One sentence for each import below the package folder that the rules do not allow."""
    for file in sorted(package.rglob("*.py")):
        name = file.relative_to(package)
        front = next((f for f in FRONT_ENDS if name.parts[0] in (f, f"{f}.py")), None)
        if front is None and name.as_posix() != "_errors.py":
            continue
        dotted = ".".join(("gemmule", *name.parent.parts))
        tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
        for line, target in _imports(tree, dotted):
            parts = target.split(".")
            if parts[0] != "gemmule":
                continue
            where = f"python/gemmule/{name.as_posix()}:{line}"
            if front is None:
                yield f"{where}: _errors.py is imported by the core and may not import {target}"
            elif len(parts) > 1 and parts[1] == "_core":
                yield f"{where}: {front} goes through the package, not to {target}"


def main() -> int:
    parser = argparse.ArgumentParser(description="check the folder rule")
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).resolve().parent.parent)
    root: Path = parser.parse_args().root
    problems = [*check_cpp(root / "csrc"), *check_python(root / "python" / "gemmule")]
    for problem in problems:
        print(problem)
    print(f"folder rule: {len(problems)} problem(s)")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
