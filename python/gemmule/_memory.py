"""How much memory the machine has. psutil ships no types, so it is loaded by name."""

import importlib

__all__ = ["machine_memory"]


def machine_memory() -> tuple[int, int]:
    """Total and available bytes."""
    memory = importlib.import_module("psutil").virtual_memory()
    return int(memory.total), int(memory.available)
