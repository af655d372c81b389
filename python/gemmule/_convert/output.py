"""A file that appears whole or not at all.

    Output(path, size)  checks and reserves space   ->   write(offset, bytes)...   ->   commit()

The bytes go into an unnamed temporary file in the target's folder (O_TMPFILE), which the kernel frees when
the process ends in whatever way; `commit` flushes it and gives it the name. Where the file system has no
unnamed files they go into `<name>.gemmule-partial`, which is locked while it is written, so that a later run
can tell a leftover from a conversion under way and remove it. An existing file stays until the rename.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from gemmule._checks import path_text
from gemmule._types import format_bytes

__all__ = ["Output", "check_target", "file_identity", "output_path"]

_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT, errno.ENOSYS)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # of a file system
_FLUSH_BYTES = 256 << 20
SUFFIX = ".gemmule-partial"
BytesLike = bytes | bytearray | memoryview | NDArray[np.uint8]


def file_identity(path: Path) -> tuple[int, int] | None:
    """What hard links and symbolic links of one file have in common; None where there is no file."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


def output_path(dst: str | os.PathLike[str] | None, name: str) -> Path:
    """The file `dst`, or a file called `name` in the folder `dst` (None: the current one)."""
    if dst is None or Path(dst).is_dir():
        return Path(dst or "") / name
    if os.fspath(dst).endswith(os.sep):
        raise NotADirectoryError(errno.ENOTDIR, "this is no folder; create it", os.fspath(dst))
    return Path(dst)


def check_target(path: Path, *, overwrite: bool, sources: Iterable[Path] = ()) -> Path:
    """Refuses a path that cannot or should not be written; returns it without symbolic links."""
    target = Path(path_text(os.path.realpath(path)))
    folder = target.parent
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "the output is a folder; give the name of a file", str(path))
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "this is a file; give a folder for the output", str(folder))
    if not folder.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, "the folder of the output does not exist; create it", str(folder)
        )
    identity = file_identity(target)
    if identity is not None:
        if not stat.S_ISREG(target.stat().st_mode):
            raise ValueError(f"the output {path} is not a regular file; choose another name")
        for source in sources:
            if file_identity(source) == identity:
                raise ValueError(f"{path} is also the input {source}; choose another output")
        if not overwrite:
            raise FileExistsError(
                errno.EEXIST, "the output exists; choose another name or overwrite it", str(path)
            )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "no permission to write in the folder of the output", str(folder))
    return target


class Output:
    """One output file of a known size, written in any order. Leaving the context uncommitted discards it."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: int,
        *,
        overwrite: bool = False,
        sources: Iterable[Path] = (),
    ) -> None:
        self.path = Path(path)
        self.size = size
        self._overwrite = overwrite
        self._fd = -1
        self._folder_fd = -1
        self._has_partial = False
        self._unflushed = 0
        self._flushed_to = 0
        self._target = check_target(self.path, overwrite=overwrite, sources=sources)
        self._partial = self._target.with_name(self._target.name + SUFFIX)
        try:
            self._folder_fd = os.open(self._target.parent, os.O_RDONLY | os.O_DIRECTORY)
            self._remove_leftover()
            self._check_space()
            self._open()
            self._reserve()
        except BaseException:
            self.discard()
            raise

    def __enter__(self) -> "Output":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def write(self, offset: int, data: BytesLike) -> None:
        """All of `data` at `offset`."""
        rest = data.data.cast("B") if isinstance(data, np.ndarray) else memoryview(data).cast("B")
        total = len(rest)
        while rest:
            try:
                n = os.pwrite(self._fd, rest, offset)
            except OSError as error:
                raise self._explained(error) from error
            if n == 0:
                raise OSError(errno.EIO, "the file takes no more bytes; check the disk", str(self.path))
            rest, offset = rest[n:], offset + n
        self._flush_behind(total, offset)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Bytes that were written before."""
        while buffer:
            n = os.preadv(self._fd, [buffer], offset)
            if n == 0:
                raise OSError(
                    errno.EIO, "the file lost bytes while it was written; check the disk", str(self.path)
                )
            buffer, offset = buffer[n:], offset + n

    def commit(self) -> None:
        """Flushes the bytes to the disk and names the file, in place of an old one if that was allowed."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise self._explained(error) from error
        if not self._has_partial and not self._target.exists():
            self._link(self._target.name)
        else:
            self._link_partial()
            self._rename()
        with contextlib.suppress(OSError):  # the file is complete and in place, whatever the folder says
            os.fsync(self._folder_fd)
        self._close()

    def discard(self) -> None:
        """Leaves nothing behind. Harmless after commit."""
        if self._has_partial and self._fd >= 0 and file_identity(self._partial) == self._identity():
            with contextlib.suppress(FileNotFoundError):
                self._partial.unlink()
        self._has_partial = False
        self._close()

    def _identity(self) -> tuple[int, int]:
        status = os.fstat(self._fd)
        return status.st_dev, status.st_ino

    def _open(self) -> None:
        """The unnamed file, or the named one where the system has none or could not name it later."""
        if not Path("/proc/self/fd").is_dir():
            self._open_partial()
            return
        try:
            self._fd = os.open(self._target.parent, os.O_TMPFILE | os.O_RDWR, 0o666)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise self._explained(error) from error
            self._open_partial()

    def _open_partial(self) -> None:
        fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        self._fd, self._has_partial = fd, True
        self._lock(fd)
        if file_identity(self._partial) != self._identity():
            raise self._busy()

    def _remove_leftover(self) -> None:
        """A partial file nobody has locked was left by a process that ended early."""
        try:
            fd = os.open(self._partial, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        try:
            self._lock(fd)
            if file_identity(self._partial) == (os.fstat(fd).st_dev, os.fstat(fd).st_ino):
                self._partial.unlink()
        finally:
            os.close(fd)

    def _lock(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._busy() from None

    def _busy(self) -> BlockingIOError:
        message = "another process is writing this file; wait for it or choose another name"
        return BlockingIOError(errno.EWOULDBLOCK, message, str(self.path))

    def _check_space(self) -> None:
        free = shutil.disk_usage(self._target.parent).free
        if free < self.size:
            raise self._no_space(free)

    def _reserve(self) -> None:
        if self.size == 0:
            return
        try:
            os.posix_fallocate(self._fd, 0, self.size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise self._explained(error) from error
            os.ftruncate(self._fd, self.size)

    def _link(self, name: str) -> None:
        # A folder descriptor makes Python call linkat, which can follow the link in /proc to an unnamed file.
        try:
            os.link(f"/proc/self/fd/{self._fd}", name, dst_dir_fd=self._folder_fd, follow_symlinks=True)
        except FileExistsError:
            raise self._taken() from None
        except OSError as error:
            raise self._explained(error) from error

    def _taken(self) -> FileExistsError:
        message = "the output was created by another process meanwhile; choose another name or overwrite it"
        return FileExistsError(errno.EEXIST, message, str(self.path))

    def _link_partial(self) -> None:
        if self._has_partial:
            return
        self._lock(self._fd)  # before it has a name, so that no other run takes it for a leftover
        self._remove_leftover()
        self._has_partial = True
        self._link(self._partial.name)

    def _rename(self) -> None:
        if not self._overwrite:
            self._link_over_nothing()
        else:
            self._partial.rename(self._target)
        self._has_partial = False

    def _link_over_nothing(self) -> None:
        """Gives a named partial file its final name, unless that was taken meanwhile."""
        try:
            os.link(self._partial, self._target)
        except FileExistsError:
            raise self._taken() from None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise self._explained(error) from error
            self._partial.rename(self._target)
        else:
            self._partial.unlink()

    def _flush_behind(self, n_bytes: int, end: int) -> None:
        """Now and then puts the written bytes on the disk and out of the page cache.

        So the last flush is short, a failing disk shows early, and the cache keeps what others need.
        """
        self._unflushed += n_bytes
        if self._unflushed < _FLUSH_BYTES:
            return
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise self._explained(error) from error
        os.posix_fadvise(self._fd, self._flushed_to, max(0, end - self._flushed_to), os.POSIX_FADV_DONTNEED)
        self._unflushed, self._flushed_to = 0, end

    def _explained(self, error: OSError) -> OSError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return self._no_space(shutil.disk_usage(self._target.parent).free)
        if error.errno == errno.EFBIG:
            text = f"a file of {format_bytes(self.size)} is larger than this process or file system allows"
            return OSError(errno.EFBIG, text, str(self.path))
        return OSError(error.errno, f"cannot write the output: {error.strerror}", str(self.path))

    def _no_space(self, free: int) -> OSError:
        text = f"the output needs {format_bytes(self.size)} but the disk has {format_bytes(free)} free"
        return OSError(errno.ENOSPC, text, str(self.path))

    def _close(self) -> None:
        fds = (self._fd, self._folder_fd)
        self._fd = self._folder_fd = -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)
