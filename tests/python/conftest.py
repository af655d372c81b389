"""Shared fixtures: the tiny committed models and the real weights of the [demo] extra."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import gemmule

# A suite started in the background ignores Ctrl-C, and so would every command it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture(scope="session", autouse=True)
def _drafting_is_not_kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tiny models teach about drafting stays out of the user's cache."""
    folder = tmp_path_factory.mktemp("drafting")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gemmule._drafting.cache_dir", lambda: folder)
        yield


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def tiny_gemma3_path() -> Path:
    return GOLDEN / "tiny-gemma3-f32.gguf"


@pytest.fixture(scope="session")
def tiny_gemma4_path() -> Path:
    return GOLDEN / "tiny-gemma4-f32.gguf"


@pytest.fixture(params=["tiny-gemma3-f32.gguf", "tiny-gemma4-f32.gguf"])
def tiny(request: pytest.FixtureRequest) -> Iterator[gemmule.Model]:
    """Each tiny model in turn."""
    with gemmule.Model(GOLDEN / request.param) as model:
        yield model


@pytest.fixture(scope="session")
def demo_model_path() -> Path:
    """The real model; skipped only where its packages are not installed (the [test] extra installs them)."""
    from gemmule._demo_weights import demo_weights

    try:
        return demo_weights()
    except gemmule.MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def demo_model(demo_model_path: Path) -> Iterator[gemmule.Model]:
    with gemmule.Model(demo_model_path, n_ctx=2048) as model:
        yield model
