"""Each instruction-set object must export one function and nothing else.

An object compiled for AVX2 that also holds a weak copy of some inline function is a trap: the linker may keep
that copy for the whole program, which then dies on an older processor in code that never asked for AVX2. So
`nm` must show one strong global function, `kernels_<level>` for csrc/backend/cpu/isa/<level>.cpp and
`encode_kernels_<level>` for csrc/quant/isa/encode_<level>.cpp, and no other global definition, weak
or strong. The objects are searched for below the build folder.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# The unwinder's pointer to its personality routine, emitted for noexcept functions: data, equal everywhere.
HARMLESS = {"DW.ref.__gxx_personality_v0"}


def exported_name(stem: str) -> str:
    """The function that the object of a source file must export."""
    return (
        f"encode_kernels_{stem.removeprefix('encode_')}" if stem.startswith("encode_") else f"kernels_{stem}"
    )


def object_problems(level: str, listing: str) -> Iterator[str]:
    """What is wrong with the object of `level`, given the output of `nm -P -g --defined-only`."""
    name = exported_name(level)
    exported = re.compile(rf"(?<![a-z_]){name}(?![a-z_])|\d+{name}(?=E)")
    n_exported = 0
    for line in listing.splitlines():
        fields = line.split()
        if len(fields) < 2 or fields[0].endswith(":"):
            continue
        symbol, kind = fields[0], fields[1]
        if symbol in HARMLESS:
            continue
        if kind == "T" and exported.search(symbol):
            n_exported += 1
        elif kind in {"W", "V", "w", "v", "u"}:
            yield f"{level}: weak symbol {symbol}; a header with inline functions was included"
        elif kind not in {"U", "I"}:
            yield f"{level}: extra global symbol {symbol} ({kind}); move it into an unnamed namespace"
    if n_exported != 1:
        yield f"{level}: {n_exported} functions {name} exported, expected exactly one"


def main() -> int:
    parser = argparse.ArgumentParser(description="check what the instruction-set objects export")
    parser.add_argument("build_dir", type=Path, help="a build folder without sanitizers, such as build/dev")
    parser.add_argument("--nm", default="nm", help="the nm program to use")
    options = parser.parse_args()
    root = Path(__file__).resolve().parent.parent
    folders = ("csrc/backend/cpu/isa", "csrc/quant/isa")
    levels = sorted(path.stem for folder in folders for path in (root / folder).glob("*.cpp"))
    problems: list[str] = []
    n_objects = 0
    for level in levels:
        objects = [
            path
            for suffix in ("o", "obj")
            for path in sorted(options.build_dir.rglob(f"{level}.cpp.{suffix}"))
        ]
        if not objects and level.endswith("scalar"):
            problems.append(f"no object {level}.cpp.o below {options.build_dir}; build it first")
        for path in objects:
            n_objects += 1
            command = [options.nm, "-P", "-g", "--defined-only", str(path)]
            listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            problems += [f"{path}: {problem}" for problem in object_problems(level, listing)]
    for problem in problems:
        print(problem)
    print(f"instruction-set objects: {n_objects} checked ({', '.join(levels)}), {len(problems)} problem(s)")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
