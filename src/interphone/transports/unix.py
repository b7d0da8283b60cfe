"""Unix sockets: who may hold a path, who is at the other end, and the bytes between them.

A server takes a path in this order, and gives it back in the reverse one:

    directory   ours is made 0700 and verified; everything below happens relative to it
    lock        `<path>.lock`, locked for as long as the server lives; a crash frees it
    probe       what is at the path already: a file is left alone, and so is a live server
    bind        under a temporary name, with its mode set before anybody can reach it
    listen      so that nobody ever finds a path that refuses
    publish     moved to the path: over a dead socket, or where there was nothing

Who is at the other end is asked of the kernel before anything else is done, on both sides.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
import struct
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from ..address import UnixAddress, path_limit
from ..errors import AddressError, AddressInUse, ConnectError
from . import Credentials, Factory, WriteGate

assert sys.platform != "win32"

__all__ = [
    "SocketTransport",
    "UnixListener",
    "bsd_credentials",
    "connect",
    "connect_socket",
    "linux_credentials",
    "listen",
    "peer_credentials",
]

BACKLOG = 4096
ACCEPTS = 64
"""How many connections are accepted before others get their turn."""

OWNER_ONLY = 0o600
ANYBODY = 0o666
OVERFLOW_UID = 65534
"""What the kernel says of a user it cannot name in our user namespace."""

LOCK_ATTEMPTS = 1000
MAX_LOCK = 20
"""A lock holds the number of a process, and no more bytes than this."""

RETRY_DELAY = 0.1
"""Seconds without accepting when the system has no resources at all."""

LOG_INTERVAL = 1.0
JOINED = 16 * 1024
"""Writes smaller than this are joined while they wait."""

MAX_JOINED = 64 * 1024
CHUNKS = 64
"""How many waiting chunks are sent at once; the systems allow 1024."""

DRAINING_READS = 64

NO_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
TRANSIENT = NO_RESOURCES | {
    errno.ENOENT,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EAGAIN,
    errno.EINTR,
}

# States of a transport.
OPEN, BROKEN, CLOSING, LOST = range(4)

Buffer = bytes | bytearray | memoryview
GetSocketOption = Callable[[int, int, int], bytes]

log = logging.getLogger("interphone.transports")


# Connecting


def connect(
    address: UnixAddress, factory: Factory, *, allowed_uids: frozenset[int] | None = None
) -> SocketTransport:
    """Connect to a path, in one attempt that never waits; see `interphone.transports.connect`."""
    loop = asyncio.get_running_loop()
    sock, credentials = connect_socket(address, allowed_uids=allowed_uids)
    try:
        transport = SocketTransport(
            loop, sock, factory(), credentials=credentials, peername=address.path
        )
    except BaseException:
        sock.close()
        raise
    transport.start()
    return transport


def connect_socket(
    address: UnixAddress, *, allowed_uids: frozenset[int] | None = None
) -> tuple[socket.socket, Credentials]:
    """Connect a non-blocking socket to a path, and tell who listens there.

    asyncio's `sock_connect` is not used: it takes a full backlog for success.

    Args:
        address: Where somebody listens.
        allowed_uids: Users the server may run as; by default only our own.

    Raises:
        ConnectError: Nobody is there, or nobody we may talk to.
        AddressError: The private directory is not safe.
    """
    if address.private:
        _verify_private(address)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(address.path)
        return sock, _trusted_server(sock, address, allowed_uids)
    except OSError as exc:
        sock.close()
        if isinstance(exc, ConnectError):
            raise
        raise _connect_error(address, exc) from exc


def _verify_private(address: UnixAddress) -> None:
    try:
        os.close(_open_directory(address))
    except FileNotFoundError as exc:
        raise _connect_error(address, exc) from exc


def _trusted_server(
    sock: socket.socket, address: UnixAddress, allowed_uids: frozenset[int] | None
) -> Credentials:
    credentials = peer_credentials(sock)
    if credentials is None:
        raise ConnectError(f"cannot tell who runs the server at {address}")
    if not _trusted(credentials, allowed_uids):
        uid = credentials.uid
        raise ConnectError(f"the server at {address} runs as uid {uid}, which is not allowed")
    return credentials


def _connect_error(address: UnixAddress, exc: OSError) -> ConnectError:
    reasons = {
        errno.ENOENT: "nobody listens there",
        errno.ECONNREFUSED: "nobody listens there any more",
        errno.EAGAIN: "the server is there, but too many others wait for it",
    }
    reason = reasons.get(exc.errno or 0) or exc.strerror or str(exc)
    return ConnectError(f"cannot connect to {address}: {reason}", transient=exc.errno in TRANSIENT)


# Who is at the other end


def peer_credentials(sock: socket.socket) -> Credentials | None:
    """Ask the kernel who is at the other end; None if it does not tell exactly."""
    read = linux_credentials if sys.platform == "linux" else bsd_credentials
    try:
        return read(sock.getsockopt)
    except (OSError, struct.error):
        return None


def linux_credentials(getsockopt: GetSocketOption) -> Credentials | None:
    """Read `SO_PEERCRED`, a `struct ucred` of pid, uid and gid; see socket(7)."""
    ucred = struct.Struct("iII")
    raw = getsockopt(socket.SOL_SOCKET, getattr(socket, "SO_PEERCRED", 17), ucred.size)
    pid, uid, gid = ucred.unpack(raw)
    # A process outside our pid namespace has the number 0.
    return Credentials(uid, pid if pid > 0 else None, gid)


def bsd_credentials(getsockopt: GetSocketOption) -> Credentials | None:
    """Read `LOCAL_PEERCRED`, a `struct xucred`, and `LOCAL_PEERPID`; see unix(4) of macOS.

    The struct is a version, which must be 0, the uid, the number of groups, and 16 of them.
    """
    sol_local, local_peercred, local_peerpid = 0, 1, 2
    xucred = struct.Struct("IIh2x16I")
    version, uid, count, gid, *_ = xucred.unpack(getsockopt(sol_local, local_peercred, xucred.size))
    if version != 0 or not 1 <= count <= 16:
        return None
    try:
        (pid,) = struct.unpack("i", getsockopt(sol_local, local_peerpid, 4))
    except OSError:
        pid = 0
    return Credentials(uid, pid if pid > 0 else None, gid)


def _trusted(credentials: Credentials, allowed_uids: frozenset[int] | None) -> bool:
    own = os.geteuid()
    if credentials.uid == OVERFLOW_UID and own != OVERFLOW_UID:
        return False
    return credentials.uid == own if allowed_uids is None else credentials.uid in allowed_uids


# Listening


def listen(
    address: UnixAddress,
    factory: Factory,
    *,
    allowed_uids: frozenset[int] | None = None,
    backlog: int | None = None,
) -> UnixListener:
    """Take a path and accept connections there; see `interphone.transports.listen`."""
    loop = asyncio.get_running_loop()
    own = os.geteuid()
    # Root enters anywhere. Other users need permission to connect, and are told apart then.
    mode = OWNER_ONLY if (allowed_uids or frozenset()) <= {0, own} else ANYBODY
    try:
        claim = Claim(address)
        try:
            sock = claim.publish(mode=mode, backlog=backlog or BACKLOG)
        except BaseException:
            claim.release()
            raise
    except AddressInUse:
        raise
    except OSError as exc:
        raise AddressError(f"cannot listen at {address}: {exc.strerror or exc}") from exc
    return UnixListener(loop, sock, claim, factory, allowed_uids)


class UnixListener:
    """Accepts connections at a path until it is closed.

    Attributes:
        address: Where it listens.
        refused: How many were turned away because of their user.
        shed: How many were turned away because there was no file descriptor for them.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        claim: Claim,
        factory: Factory,
        allowed_uids: frozenset[int] | None,
    ) -> None:
        self.address = claim.address
        self.refused = 0
        self.shed = 0
        self._loop = loop
        self._sock = sock
        self._claim = claim
        self._factory = factory
        self._allowed_uids = allowed_uids
        self._closed = False
        self._reserve = _open_reserve()
        self._retry: asyncio.TimerHandle | None = None
        self._log_after = 0.0
        loop.add_reader(sock.fileno(), self._on_readable)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "listening"
        return f"<UnixListener {self.address} {state}>"

    def close(self) -> None:
        """Stop accepting and remove our files; accepted connections stay. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        # A forked child shares the selector of its parent, and must not touch it.
        if self._claim.held and not self._loop.is_closed():
            self._loop.remove_reader(self._sock.fileno())
        self._claim.withdraw()
        self._sock.close()
        self._claim.release()
        _close_reserve(self._reserve)
        self._reserve = None

    def _on_readable(self) -> None:
        for _ in range(ACCEPTS):
            if self._closed or not self._accept():
                return

    def _accept(self) -> bool:
        try:
            sock = self._sock.accept()[0]
        except BlockingIOError:
            return False
        except OSError as exc:
            return self._on_accept_error(exc)
        self._admit(sock)
        return True

    def _admit(self, sock: socket.socket) -> None:
        credentials = peer_credentials(sock)
        if credentials is None or not _trusted(credentials, self._allowed_uids):
            self.refused += 1
            sock.close()
            return
        try:
            sock.setblocking(False)
            transport = SocketTransport(
                self._loop, sock, self._factory(), credentials=credentials, peername=""
            )
        except BaseException:
            sock.close()
            raise
        transport.start()

    # Running out of resources

    def _on_accept_error(self, exc: OSError) -> bool:
        if exc.errno in (errno.EINTR, errno.ECONNABORTED):
            return True
        if exc.errno not in NO_RESOURCES:
            raise exc
        self._complain(exc)
        if self._reserve is not None and self._shed():
            return True
        # The socket stays readable: listening on would burn the CPU.
        self._loop.remove_reader(self._sock.fileno())
        self._retry = self._loop.call_later(RETRY_DELAY, self._listen_again)
        return False

    def _shed(self) -> bool:
        """Take a connection with the reserved descriptor and close it: its end learns at once."""
        _close_reserve(self._reserve)
        try:
            self._sock.accept()[0].close()
        except BlockingIOError:
            return True
        except OSError:
            return False
        else:
            self.shed += 1
            return True
        finally:
            self._reserve = _open_reserve()

    def _listen_again(self) -> None:
        self._retry = None
        if self._reserve is None:
            self._reserve = _open_reserve()
        self._loop.add_reader(self._sock.fileno(), self._on_readable)

    def _complain(self, exc: OSError) -> None:
        now = self._loop.time()
        if now >= self._log_after:
            self._log_after = now + LOG_INTERVAL
            log.warning(
                "cannot accept at %s: %s; %d turned away so far",
                self.address,
                exc.strerror,
                self.shed,
            )


def _open_reserve() -> int | None:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _close_reserve(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)


# Taking a path


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
        return _open_directory(address)
    except OSError as exc:
        raise AddressError(f"cannot use the directory {directory}: {exc.strerror}") from exc


def _open_directory(address: UnixAddress) -> int:
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


# Moving bytes


class SocketTransport(asyncio.Transport):
    """Moves bytes between a connected non-blocking socket and a buffered protocol.

    It does what asyncio's own transport does, on any loop that has `add_reader`, and:

    - what a peer wrote before it went away is still read when a write finds it gone;
    - an exception in a protocol's callback ends the connection;
    - what is written after `close` is dropped.
    """

    __slots__ = (
        "__weakref__",
        "_at_end",
        "_buffer_updated",
        "_chunks",
        "_eof_written",
        "_fd",
        "_gate",
        "_get_buffer",
        "_loop",
        "_paused",
        "_protocol",
        "_recv_into",
        "_send",
        "_size",
        "_sock",
        "_state",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        protocol: asyncio.BufferedProtocol,
        *,
        credentials: Credentials | None = None,
        peername: str = "",
    ) -> None:
        super().__init__({"socket": sock, "credentials": credentials, "peername": peername})
        self._sock: socket.socket | None = None
        self.set_protocol(protocol)
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._recv_into: Callable[[Any], int] = sock.recv_into  # bound once: hot path
        self._send: Callable[[Any], int] = sock.send
        self._state = OPEN
        self._paused = False
        self._at_end = False
        self._eof_written = False
        self._chunks: deque[Buffer] = deque()
        self._size = 0
        self._gate = WriteGate()

    def __repr__(self) -> str:
        state = ("open", "broken", "closing", "closed")[self._state]
        return f"<SocketTransport fd={self._fd} {state} {self._size} to write>"

    def __del__(self) -> None:
        if self._sock is not None:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self._sock.close()

    def start(self) -> None:
        """Tell the protocol that it is connected, and begin to read."""
        try:
            self._protocol.connection_made(self)
        except Exception as exc:
            self._fail(exc, "connection_made")
            return
        if self.is_reading():
            self._loop.add_reader(self._fd, self._on_readable)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Give the protocol that is told what happens."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Let another buffered protocol be told what happens from now on."""
        if not isinstance(protocol, asyncio.BufferedProtocol):
            raise TypeError(f"{protocol!r} is not a BufferedProtocol")
        self._protocol = protocol
        self._get_buffer: Callable[[int], Any] = protocol.get_buffer
        self._buffer_updated: Callable[[int], None] = protocol.buffer_updated

    # Ending

    def is_closing(self) -> bool:
        """Tell whether the connection has ended or is about to."""
        return self._state != OPEN

    def close(self) -> None:
        """Stop reading, write what is left, and end the connection."""
        if self._state == BROKEN:
            self._lose(None)
        elif self._state == OPEN:
            self._state = CLOSING
            self._stop_reading()
            if not self._chunks:
                self._lose(None)

    def abort(self) -> None:
        """End the connection at once; what is not yet written is lost."""
        self._lose(None)

    # Reading

    def is_reading(self) -> bool:
        """Tell whether what arrives is passed on."""
        return self._state == OPEN and not self._paused and not self._at_end

    def pause_reading(self) -> None:
        """Pass on nothing until `resume_reading`. Idempotent."""
        if self.is_reading():
            self._stop_reading()
        self._paused = True

    def resume_reading(self) -> None:
        """Pass on what arrives again. Idempotent."""
        if self._paused:
            self._paused = False
            if self.is_reading():
                self._loop.add_reader(self._fd, self._on_readable)

    def _on_readable(self) -> None:
        # Hot path: one system call and two calls of the protocol, nothing else.
        try:
            buffer = self._get_buffer(-1)
        except Exception as exc:
            self._fail(exc, "get_buffer")
            return
        try:
            size = self._recv_into(buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._lose(exc)
            return
        if not size:
            self._on_end(buffer)
            return
        try:
            self._buffer_updated(size)
        except Exception as exc:
            self._fail(exc, "buffer_updated")

    def _on_end(self, buffer: Buffer) -> None:
        if not len(buffer):
            self._fail(RuntimeError("the buffer for reading is empty"), "get_buffer")
            return
        self._at_end = True
        self._stop_reading()
        try:
            stay_open = self._protocol.eof_received()
        except Exception as exc:
            self._fail(exc, "eof_received")
            return
        if not stay_open:
            self.close()

    def _stop_reading(self) -> None:
        self._loop.remove_reader(self._fd)

    # Writing

    def get_write_buffer_size(self) -> int:
        """Tell how many bytes are not yet written."""
        return self._size

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Tell the low and the high mark of what is not yet written."""
        return self._gate.low, self._gate.high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set at how many bytes not yet written the protocol pauses, and goes on."""
        self._gate.set_limits(high, low)
        self._check_gate()

    def can_write_eof(self) -> bool:
        """Tell that `write_eof` works."""
        return True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write at once what the system takes, and the rest when it takes more.

        The buffer may be used again as soon as this returns.
        """
        if self._eof_written:
            raise RuntimeError("cannot write after write_eof()")
        if self._state:
            return
        if data.__class__ is memoryview:
            data = data.cast("B")
        sent = 0
        if not self._chunks:
            try:
                sent = self._send(data)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as exc:
                self._break(exc)
                return
            if sent == len(data):
                return
            self._loop.add_writer(self._fd, self._on_writable)
        self._keep(data, sent)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Write several buffers as one."""
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        """End the writing side once everything is written; reading goes on."""
        if self._eof_written or self._state != OPEN:
            return
        self._eof_written = True
        if not self._chunks:
            self._shut_down()

    def _keep(self, data: Buffer, sent: int) -> None:
        if not (size := len(data) - sent):
            return
        chunks = self._chunks
        if size > JOINED:
            rest = memoryview(data)[sent:]
            chunks.append(rest if data.__class__ is bytes else bytes(rest))
        else:
            last = chunks[-1] if chunks else None
            if not isinstance(last, bytearray) or len(last) > MAX_JOINED:
                chunks.append(last := bytearray())
            last += memoryview(data)[sent:] if sent else data
        self._size += size
        self._check_gate()

    def _on_writable(self) -> None:
        chunks = self._chunks
        try:
            if len(chunks) == 1:
                sent = self._send(chunks[0])
            else:
                assert self._sock is not None
                sent = self._sock.sendmsg(list(islice(chunks, CHUNKS)))
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._break(exc)
            return
        self._forget(sent)
        self._check_gate()
        # The protocol may have written again, or ended it all.
        if not chunks and self._state != LOST:
            self._on_written()

    def _forget(self, sent: int) -> None:
        chunks = self._chunks
        self._size -= sent
        while sent:
            first = chunks[0]
            if sent >= len(first):
                sent -= len(chunks.popleft())
                continue
            if isinstance(first, bytearray):
                del first[:sent]
            else:
                chunks[0] = memoryview(first)[sent:]
            return

    def _on_written(self) -> None:
        self._loop.remove_writer(self._fd)
        if self._state == CLOSING:
            self._lose(None)
        elif self._eof_written:
            self._shut_down()

    def _shut_down(self) -> None:
        assert self._sock is not None
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as exc:
            self._break(exc)

    def _check_gate(self) -> None:
        if self._state == LOST:
            return
        try:
            self._gate.check(self._size, self._protocol)
        except Exception as exc:
            self._fail(exc, "pause_writing or resume_writing")

    # The end

    def _break(self, exc: OSError) -> None:
        """Nothing can be written any more: read what had arrived, then it is over."""
        if self._state != OPEN or self._at_end:
            self._lose(exc)
            return
        self._state = BROKEN
        self._loop.remove_writer(self._fd)
        self._stop_reading()
        self._chunks.clear()
        self._size = 0
        self._loop.call_soon(self._drain, exc)

    def _drain(self, exc: OSError) -> None:
        for _ in range(DRAINING_READS):
            if self._state != BROKEN or self._paused or not self._read_rest():
                break
        self._lose(exc)

    def _read_rest(self) -> bool:
        try:
            size = self._recv_into(buffer := self._get_buffer(-1))
            if size:
                self._buffer_updated(size)
            elif len(buffer):
                self._protocol.eof_received()
        except OSError:
            return False
        except Exception as exc:
            self._fail(exc, "buffer_updated")
            return False
        return size > 0

    def _fail(self, exc: Exception, callback: str) -> None:
        self._loop.call_exception_handler(
            {
                "message": f"{callback}() of a protocol raised; the connection is aborted",
                "exception": exc,
                "transport": self,
                "protocol": self._protocol,
            }
        )
        self._lose(exc)

    def _lose(self, exc: Exception | None) -> None:
        if self._state == LOST:
            return
        self._state = LOST
        if self._chunks:
            self._chunks.clear()
            self._size = 0
        self._loop.remove_writer(self._fd)
        self._stop_reading()
        self._loop.call_soon(self._finish, exc)

    def _finish(self, exc: Exception | None) -> None:
        try:
            self._protocol.connection_lost(exc)
        finally:
            assert self._sock is not None
            self._sock.close()
            self._sock = None
            # What is bound to the socket and the protocol would keep them alive.
            del self._recv_into, self._send, self._get_buffer, self._buffer_updated
