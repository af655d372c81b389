"""Where gemmule keeps files it can always make again: $GEMMULE_CACHE_DIR, else the platform's user cache
folder.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

__all__ = ["atomic_write", "cache_dir", "public_write"]


def cache_dir() -> Path:
    """The cache folder; not created here."""
    if own := os.environ.get("GEMMULE_CACHE_DIR"):
        return Path(own)
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "gemmule" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "gemmule"
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "gemmule"


@contextlib.contextmanager
def atomic_write(target: Path) -> Iterator[IO[bytes]]:
    """A temporary file beside `target` that takes its name only when complete and on disk; removed on any
    error.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as temporary:
        path = Path(temporary.name)
        try:
            yield temporary
            temporary.flush()
            os.fsync(temporary.fileno())
            temporary.close()
            path.replace(target)
        except BaseException:
            temporary.close()
            path.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def public_write(target: Path) -> Iterator[IO[bytes]]:
    """The same, with the permissions that a plain write would leave: for files that others may read."""
    if target.exists():
        mode = target.stat().st_mode & 0o777
    else:
        mask = os.umask(0)
        os.umask(mask)
        mode = 0o666 & ~mask
    with atomic_write(target) as out:
        yield out
        Path(out.name).chmod(mode)
