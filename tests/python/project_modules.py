"""Loads a script of tools/ or benchmarks/ as a module, once per process."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

__all__ = ["ROOT", "load_module"]

ROOT = Path(__file__).resolve().parents[2]


def load_module(folder: str, name: str) -> ModuleType:
    """The file `name`.py of a folder of the project."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
