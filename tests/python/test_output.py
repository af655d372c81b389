"""The atomic output file appears whole or not at all, whatever call fails and whoever writes beside it."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemmule._convert import output as module
from gemmule._convert.output import SUFFIX, Output, check_target

DATA = bytes(range(256)) * 64


@pytest.fixture(params=["unnamed", "named"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to write: the second is for file systems without O_TMPFILE."""
    if request.param == "named":
        real = os.open

        def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "no unnamed files here")
            return real(path, flags, *args, **kwargs)

        monkeypatch.setattr(module.os, "open", refuse)
    return str(request.param)


def write(path: Path, *, overwrite: bool = False, data: bytes = DATA) -> None:
    with Output(path, len(data), overwrite=overwrite) as out:
        half = len(data) // 2
        out.write(half, data[half:])
        out.write(0, data[:half])
        out.commit()


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_file_appears_at_commit_only(tmp_path: Path, kind: str) -> None:
    with Output(tmp_path / "a", len(DATA)) as out:
        out.write(0, DATA)
        assert not (tmp_path / "a").exists()
        out.commit()
    assert (tmp_path / "a").read_bytes() == DATA
    assert names(tmp_path) == ["a"]


def test_permissions_follow_the_umask(tmp_path: Path, kind: str) -> None:
    old = os.umask(0o027)
    try:
        write(tmp_path / "a")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_old_file_stays_until_commit(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with Output(tmp_path / "a", len(DATA), overwrite=True) as out:
        out.write(0, DATA)
        assert (tmp_path / "a").read_bytes() == b"old"
    assert (tmp_path / "a").read_bytes() == b"old"
    write(tmp_path / "a", overwrite=True)
    assert (tmp_path / "a").read_bytes() == DATA
    assert names(tmp_path) == ["a"]


def test_existing_file_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(FileExistsError, match="overwrite"):
        Output(tmp_path / "a", 1)
    assert names(tmp_path) == ["a"]


def test_file_created_meanwhile_is_not_replaced(tmp_path: Path, kind: str) -> None:
    with Output(tmp_path / "a", len(DATA)) as out:
        out.write(0, DATA)
        (tmp_path / "a").write_bytes(b"other")
        with pytest.raises(FileExistsError, match="another process"):
            out.commit()
    assert (tmp_path / "a").read_bytes() == b"other"
    assert names(tmp_path) == ["a"]


def test_leftover_is_removed(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"a{SUFFIX}").write_bytes(b"left by a killed run")
    write(tmp_path / "a")
    assert names(tmp_path) == ["a"]


def test_file_another_process_writes_is_left_alone(tmp_path: Path, kind: str) -> None:
    partial = tmp_path / f"a{SUFFIX}"
    with partial.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="another process"):
            Output(tmp_path / "a", 1)
        assert partial.exists()


def test_symbolic_link_is_followed(tmp_path: Path, kind: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real/a")
    write(tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real/a").read_bytes() == DATA


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    os.link(source, tmp_path / "hard")
    (tmp_path / "soft").symlink_to(source)
    for name in ("source", "hard", "soft"):
        with pytest.raises(ValueError, match="also the input"):
            check_target(tmp_path / name, overwrite=True, sources=[source])
    with pytest.raises(IsADirectoryError, match="folder"):
        check_target(tmp_path, overwrite=True)
    with pytest.raises(NotADirectoryError, match="is a file"):
        check_target(source / "a", overwrite=True)
    with pytest.raises(FileNotFoundError, match="create it"):
        check_target(tmp_path / "none/a", overwrite=True)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        check_target(tmp_path / "pipe", overwrite=True)


def test_read_only_folder() -> None:
    script = (
        "import os, sys\n"
        "from gemmule._convert.output import Output\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "try: Output(sys.argv[1], 1)\n"
        "except PermissionError as error: print(error)\n"
    )
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        folder.chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", script, str(folder / "a")], capture_output=True, text=True
        )
        assert "no permission to write" in done.stdout, done.stderr
        assert names(folder) == []


def test_too_little_space_is_said_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match=r"needs 16\.4 kB but the disk has 1\.0 kB") as caught:
        Output(tmp_path / "a", len(DATA))
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == []


CALLS = ["pwrite", "fsync", "link", "posix_fallocate", "open", "ftruncate", "fdatasync"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_any_call_may_fail(
    tmp_path: Path, kind: str, name: str, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call in turn fails with a full disk: the old file stays, nothing else is left."""
    monkeypatch.setattr(module, "_FLUSH_BYTES", 1000)
    for turn in range(20):
        for entry in tmp_path.iterdir():
            entry.unlink()
        if overwrite:
            (tmp_path / "a").write_bytes(b"old")
        with monkeypatch.context() as patch:
            patch.setattr(module.os, name, failing(getattr(os, name), turn))
            error = failure(lambda: write(tmp_path / "a", overwrite=overwrite))
        if error is None:
            break
        assert error.errno == errno.ENOSPC
        assert names(tmp_path) == (["a"] if overwrite else [])
        assert not overwrite or (tmp_path / "a").read_bytes() == b"old"
    assert error is None
    assert (tmp_path / "a").read_bytes() == DATA


def failure(action: Callable[[], None]) -> OSError | None:
    try:
        action()
    except OSError as error:
        return error
    return None


def failing(real: Callable[..., Any], turn: int) -> Callable[..., Any]:
    left = [turn]

    def call(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == -1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    return call


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(module.os, "pwrite", lambda fd, data, at: real(fd, data[:1000], at))
    write(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA


def test_file_size_limit(tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from gemmule._convert.output import Output\n"
        "try: Output(sys.argv[1], 5000)\n"
        "except OSError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a")], capture_output=True, text=True)
    assert "larger than this process or file system allows" in done.stdout, done.stderr
    assert names(tmp_path) == []
