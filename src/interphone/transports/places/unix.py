"""What `places` tells and mends, on systems with Unix sockets."""

from __future__ import annotations

import os
import socket
import stat
import sys
from contextlib import suppress
from typing import Literal

from ...address import UnixAddress
from .. import Credentials
from . import Directory, Place

if sys.platform != "win32":
    import fcntl

    from ..claim import Claim
    from ..credentials import peer_credentials

assert sys.platform != "win32"

__all__ = ["clear", "look_at", "look_at_directory", "restrict", "sockets_in", "strangers_in"]

PRIVATE = 0o700
MAX_PID = 20  # bytes that a lock holds at most

KINDS = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a FIFO",
}


def look_at_directory(path: str, *, linked: bool = False) -> Directory:
    """See `places.look_at_directory`."""
    try:
        found = os.stat(path) if linked else os.lstat(path)
    except OSError:
        return Directory(path, "missing")
    state: Literal["directory", "other"] = "directory" if stat.S_ISDIR(found.st_mode) else "other"
    return Directory(path, state, _own(found), stat.S_IMODE(found.st_mode))


def look_at(path: str) -> Place:
    """See `places.look_at`."""
    try:
        found = os.lstat(path)
    except OSError:
        lock, pid = _look_at_lock(path)
        return Place(path, "missing", lock=lock, lock_pid=pid)
    facts = (_own(found), stat.S_IMODE(found.st_mode), found.st_mtime)
    what = KINDS.get(stat.S_IFMT(found.st_mode), "a device")
    if not stat.S_ISSOCK(found.st_mode):
        return Place(path, "other", *facts, what=what)
    listener, credentials = _probe(path)
    lock, pid = _look_at_lock(path, alive=listener == "alive")
    return Place(path, "socket", *facts, listener, credentials, lock, pid, what)


def sockets_in(directory: str) -> list[str]:
    """See `places.sockets_in`."""
    return [path for path, status in _entries(directory) if _own_socket(status)]


def strangers_in(directory: str) -> list[Place]:
    """See `places.strangers_in`."""
    return [
        look_at(path)
        for path, status in _entries(directory)
        if not _own_socket(status) and not (path.endswith(".lock") and stat.S_ISREG(status.st_mode))
    ]


def _entries(directory: str) -> list[tuple[str, os.stat_result]]:
    found = []
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # it has gone meanwhile
                found.append((entry.path, entry.stat(follow_symlinks=False)))
    return sorted(found)


def _own_socket(status: os.stat_result) -> bool:
    return stat.S_ISSOCK(status.st_mode) and _own(status)


def clear(address: UnixAddress) -> bool:
    """See `places.clear`."""
    claim = Claim(address)
    try:
        return claim.clear()
    finally:
        claim.release()


def restrict(directory: str) -> None:
    """See `places.restrict`."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if _own(os.fstat(fd)):
            os.fchmod(fd, PRIVATE)
    finally:
        os.close(fd)


def _own(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid()


def _probe(path: str) -> tuple[Literal["dead", "alive", "unknown"], Credentials | None]:
    """Connect, ask the kernel who is there, and hang up."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return "dead", None
        except BlockingIOError:  # its backlog is full
            return "alive", None
        except OSError:
            return "unknown", None
        return "alive", peer_credentials(probe)


def _look_at_lock(
    path: str, *, alive: bool = False
) -> tuple[Literal["missing", "held", "free", "strange"], int | None]:
    """Tell about the lock beside a path; of a server that is alive it is not tried."""
    try:
        fd = os.open(f"{path}.lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return "missing", None
    except OSError:
        return "strange", None
    try:
        found = os.fstat(fd)
        content = os.pread(fd, MAX_PID + 1, 0).strip() if stat.S_ISREG(found.st_mode) else b"?"
        if not _own(found) or len(content) > MAX_PID or (content and not content.isdigit()):
            return "strange", None
        pid = int(content) if content else None
        return ("held" if alive or _locked(fd) else "free"), pid
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
