"""The exception tree: builtins beside gemmule.Error, and numbers on the context error."""

import pickle

import pytest

import gemmule
from gemmule import _errors


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("ModelNotFoundError", FileNotFoundError),
        ("FormatError", ValueError),
        ("UnsupportedError", ValueError),
        ("ContextLengthError", ValueError),
        ("NotEnoughMemoryError", MemoryError),
        ("DeviceError", RuntimeError),
        ("MediaError", ValueError),
        ("GrammarError", ValueError),
        ("Cancelled", Exception),
        ("MissingExtraError", ImportError),
    ],
)
def test_each_error_is_also_the_fitting_builtin(name: str, builtin: type[Exception]) -> None:
    kind = getattr(gemmule, name)
    assert issubclass(kind, gemmule.Error)
    assert issubclass(kind, builtin)
    assert name in _errors.__all__


def test_context_error_carries_both_numbers_and_survives_pickling() -> None:
    error = gemmule.ContextLengthError(n_prompt=5, n_ctx=3)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.n_prompt, copy.n_ctx, str(copy)) == (5, 3, str(error))
    assert "5" in str(error)
    assert "3" in str(error)


def test_engine_raises_these_very_classes(tmp_path) -> None:
    with pytest.raises(gemmule.ModelNotFoundError):
        gemmule.inspect(tmp_path / "missing.gguf")
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"not a gguf file at all, but long enough to have a header")
    with pytest.raises(gemmule.FormatError, match=r"bad\.gguf"):
        gemmule.inspect(bad)
