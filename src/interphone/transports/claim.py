"""Claim: a path that belongs to this process, and how it comes to do so.

A server takes a path in this order, and gives it back in the reverse one:

    directory   ours is made 0700 and verified; everything below happens relative to it
    lock        `<path>.lock`, locked for as long as the server lives; a crash frees it
    probe       what is at the path already: a file is left alone, and so is a live server
    bind        under a temporary name, with its mode set before anybody can reach it
    listen      so that nobody ever finds a path that refuses
    publish     moved to the path: over a dead socket, or where there was nothing
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import sys

from ..address import UnixAddress, path_limit
from ..errors import AddressError, AddressInUse

if sys.platform != "win32":
    from .credentials import peer_credentials

assert sys.platform != "win32"

__all__ = ["OWNER_ONLY", "Claim", "open_directory"]

OWNER_ONLY = 0o600
LOCK_ATTEMPTS = 1000
MAX_LOCK = 20
"""A lock holds the number of a process, and no more bytes than this."""


class Claim:
    """A path that belongs to this process: the lock beside it, and in time the socket at it.

    Attributes:
        address: The path.
    """

    def __init__(self, address: UnixAddress) -> None:
        self.address = address
        self._name = os.path.basename(address.path)
        self._lock_name = f"{self._name}.lock"
        self._pid = os.getpid()
        self._published: tuple[int, int] | None = None
        self._directory = _enter_directory(address)
        try:
            self._lock = self._take_lock()
        except BaseException:
            os.close(self._directory)
            raise

    @property
    def held(self) -> bool:
        """Whether it is ours: a forked child inherits the object, not the path."""
        return os.getpid() == self._pid

    def publish(self, *, mode: int, backlog: int) -> socket.socket:
        """Put a listening socket at the path."""
        replace = self._find_dead_socket()
        path = self._temporary_path()
        temporary = os.path.basename(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            _bind(sock, path, mode)
            try:
                sock.listen(backlog)
                self._published = self._identity(temporary)
                self._move(temporary, replace=replace)
            except BaseException:
                os.unlink(temporary, dir_fd=self._directory)
                raise
        except BaseException:
            sock.close()
            raise
        return sock

    def withdraw(self) -> None:
        """Remove the socket from the path, if it is still the one we put there."""
        if self.held and self._published is not None:
            self._unlink(self._name, self._published)
        self._published = None

    def clear(self) -> bool:
        """Remove a socket from the path that nobody listens at any more; whether there was one.

        Raises:
            AddressInUse: Somebody is there, or it is no socket of ours to touch.
        """
        # Who takes no lock may come at any time: what is removed is what was probed.
        identity = self._identity(self._name)
        if identity is None or not self._find_dead_socket():
            return False
        self._unlink(self._name, identity)
        return True

    def release(self) -> None:
        """Give the path back: the next server may take it."""
        self.withdraw()
        if self.held:
            self._unlink(self._lock_name, _identity(os.fstat(self._lock)))
        os.close(self._lock)
        os.close(self._directory)

    # The lock

    def _take_lock(self) -> int:
        for _ in range(LOCK_ATTEMPTS):
            fd = self._open_lock()
            try:
                if self._locked(fd):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
        raise self._in_use("its lock keeps changing hands")

    def _open_lock(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            return os.open(self._lock_name, flags, OWNER_ONLY, dir_fd=self._directory)
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise self._in_use("its lock is not a regular file; it was not touched") from exc
            raise AddressError(
                f"cannot open {self.address}.lock: {exc.strerror}; a server needs a directory"
                " it may write to"
            ) from exc

    def _locked(self, fd: int) -> bool:
        found = os.fstat(fd)
        if not _our_lock(fd, found):
            raise self._in_use("its lock is a file of somebody else; it was not touched")
        held = _try_lock(fd)
        if self._identity(self._lock_name) != _identity(found):
            # A server that was leaving has removed it since: there is another one, or none.
            return False
        if not held:
            raise self._in_use("a live server holds it", pid=_read_pid(fd))
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % self._pid, 0)
        return True

    # The socket

    def _find_dead_socket(self) -> bool:
        """Tell whether a dead socket of ours is at the path; raise if it is anything else."""
        try:
            found = os.lstat(self._name, dir_fd=self._directory)
        except FileNotFoundError:
            return False
        if not stat.S_ISSOCK(found.st_mode):
            raise self._in_use("is not a socket; it was not touched")
        self._probe()
        if found.st_uid != os.geteuid():
            raise self._in_use(f"is a dead socket of uid {found.st_uid}; it was not touched")
        return True

    def _probe(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self.address.path)
            except (ConnectionRefusedError, FileNotFoundError):
                return
            except BlockingIOError:
                raise self._in_use("a live server listens there") from None
            except OSError as exc:
                raise self._in_use(f"cannot be probed: {exc.strerror}; it was not touched") from exc
            owner = peer_credentials(probe)
            raise self._in_use("a live server listens there", pid=owner.pid if owner else None)

    def _temporary_path(self) -> str:
        directory = os.path.dirname(self.address.path)
        name = f".{os.urandom(6).hex()}"
        room = path_limit() - len(os.fsencode(directory)) - 1
        if room >= len(name):
            return f"{directory}/{name}"
        if sys.platform == "linux":
            return f"/proc/self/fd/{self._directory}/{name}"
        return f"{directory}/{name[1:room]}"

    def _move(self, temporary: str, *, replace: bool) -> None:
        here = self._directory
        if replace or sys.platform != "linux":
            os.rename(temporary, self._name, src_dir_fd=here, dst_dir_fd=here)
            return
        # Unlike rename, link fails if somebody who takes no lock came since we looked.
        try:
            os.link(temporary, self._name, src_dir_fd=here, dst_dir_fd=here, follow_symlinks=False)
        except FileExistsError:
            raise self._in_use("somebody else was faster") from None
        os.unlink(temporary, dir_fd=here)

    def _identity(self, name: str) -> tuple[int, int] | None:
        try:
            return _identity(os.lstat(name, dir_fd=self._directory))
        except FileNotFoundError:
            return None

    def _unlink(self, name: str, identity: tuple[int, int]) -> None:
        with contextlib.suppress(OSError):
            if self._identity(name) == identity:
                os.unlink(name, dir_fd=self._directory)

    def _in_use(self, why: str, *, pid: int | None = None) -> AddressInUse:
        return AddressInUse(str(self.address), why, pid=pid)


def _enter_directory(address: UnixAddress) -> int:
    directory = os.path.dirname(address.path)
    try:
        if address.private:
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory, 0o700)
        return open_directory(address)
    except OSError as exc:
        raise AddressError(f"cannot use the directory {directory}: {exc.strerror}") from exc


def open_directory(address: UnixAddress) -> int:
    """Open the directory of a socket; our own must be a real one that only we can enter."""
    directory = os.path.dirname(address.path)
    # O_PATH needs no permission to list what is there.
    flags = os.O_DIRECTORY | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)
    if not address.private:
        return os.open(directory, flags)
    try:
        fd = os.open(directory, flags | os.O_NOFOLLOW)
    except OSError as exc:
        if exc.errno in (errno.ENOTDIR, errno.ELOOP):
            raise AddressError(f"{directory} is not a directory: remove it") from exc
        raise
    if reason := _unsafe(os.fstat(fd)):
        os.close(fd)
        raise AddressError(f"{directory} is not safe: {reason}")
    return fd


def _unsafe(found: os.stat_result) -> str | None:
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.geteuid():
        return f"it belongs to uid {found.st_uid}; have it removed"
    if mode & 0o077:
        return f"others may enter it (mode {mode:04o}); make it 0700"
    return None


def _bind(sock: socket.socket, path: str, mode: int) -> None:
    if sys.platform == "linux":
        # The file inherits the mode of the socket: there is no moment with another one.
        os.fchmod(sock.fileno(), OWNER_ONLY)
        sock.bind(path)
        if mode == OWNER_ONLY:
            return
    else:
        sock.bind(path)
    # Nobody can connect before `listen`.
    os.chmod(path, mode)


def _our_lock(fd: int, found: os.stat_result) -> bool:
    """Tell whether it is a lock a server of this user made, not another file of that name."""
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink > 1:
        return False
    content = os.pread(fd, MAX_LOCK + 1, 0)
    return len(content) <= MAX_LOCK and (not content or content.strip().isdigit())


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_pid(fd: int) -> int | None:
    try:
        return int(os.pread(fd, MAX_LOCK, 0)) or None
    except ValueError:
        return None


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
