"""Files that appear whole or not at all, whatever ends their writer: an exception, a signal, a full disk.

The new file is written under a passing name in the folder of the old one and takes the old one's name at the
end. A writer holds a lock (flock) on its passing file, which the system lets go when it dies: a passing
file without one was left by a dead writer, and the next writer in that folder removes it.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import BinaryIO

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be removed anyway
    fcntl = None

PREFIX, SUFFIX = ".minerlib-", ".part"


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A stream to a new file that replaces `path` when the block ends without an exception.

    Until then `path` is what it was, and who has it open or mapped keeps the old file. A link is followed
    and an old file's permissions are kept. What the system refuses is an OSError of its usual kind that
    names `path`.
    """
    try:
        target = os.path.realpath(path)
        permissions = _permissions(target)
        _remove_leftovers(os.path.dirname(target))
        descriptor, part = _open_part(os.path.dirname(target))
        try:
            with open(descriptor, "wb") as stream:
                if permissions is not None and hasattr(os, "fchmod"):
                    with suppress(OSError):  # a file system without permissions
                        os.fchmod(descriptor, permissions)
                yield stream
                stream.flush()
                os.fsync(descriptor)
                if fcntl is not None:
                    os.replace(part, target)  # still locked: no other writer takes it for a leftover
            if fcntl is None:
                os.replace(part, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(part)
            raise
        _sync_folder(os.path.dirname(target))
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error


def _permissions(target: str) -> int | None:
    """Those of the file to be replaced; a folder, a device or a read-only file in its place is refused."""
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "expected a file to write, this is a folder")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "expected a regular file to write, this is none")
    if not os.access(target, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise PermissionError(errno.EACCES, "the file to be replaced is read-only")
    return stat.S_IMODE(mode)


def _open_part(folder: str) -> tuple[int, str]:
    while True:
        part = os.path.join(folder, f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}")
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        if fcntl is None:
            return descriptor, part
        with suppress(OSError):  # a file system without locks: nobody can lock, so nobody removes
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:  # else another writer saw it before it was locked
            return descriptor, part
        os.close(descriptor)


def _remove_leftovers(folder: str) -> None:
    """Remove what dead writers left in the folder; whatever forbids it is no reason not to write."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX) and entry.name.endswith(SUFFIX):
                with suppress(OSError):
                    _remove_if_dead(entry.path)


def _remove_if_dead(part: str) -> None:
    if fcntl is None:
        os.unlink(part)
        return
    descriptor = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(part)
    finally:
        os.close(descriptor)


def _sync_folder(folder: str) -> None:
    """So that the new name outlives a power cut as well."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that syncs no folders
            raise
    finally:
        os.close(descriptor)
