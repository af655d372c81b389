"""The public names: sorted, loadable, and each documented."""

import importlib
from pathlib import Path

import pytest

import gemmule

MODULES = sorted(p.stem for p in Path(gemmule.__file__).parent.glob("_*.py") if not p.stem.startswith("__"))


def test_all_is_sorted_and_loads() -> None:
    assert gemmule.__all__ == sorted(gemmule.__all__)
    for name in gemmule.__all__:
        member = getattr(gemmule, name)
        assert name == "__version__" or member.__doc__, f"{name} has no docstring"
    assert set(gemmule.__all__) <= set(dir(gemmule))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        gemmule.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", MODULES)
def test_private_modules_list_what_they_have(name: str) -> None:
    module = importlib.import_module(f"gemmule.{name}")
    assert module.__doc__
    assert list(module.__all__) == sorted(module.__all__)
    for member in module.__all__:
        assert hasattr(module, member)
